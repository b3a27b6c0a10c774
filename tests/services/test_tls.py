"""Streams between machines: both ends show certificates, which say who their holder may be."""

import asyncio
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import joined_services
import msgspec
import pytest
from joined_services import GATEWAY, House, expected

from services import blocking, streams
from services.blocking import BlockingStream, StreamClosedError
from services.framing import (
    AddressError,
    ConnectorHandshake,
    HandshakeError,
    Identity,
    ListenerHandshake,
    parse_address,
)
from services.settings import Deployment
from services.stream_settings import StreamSettings, TlsSettings
from services.tls import Certificates
from services.transport import Link, Listener, listen
from services.wire import Cancel, Capacity, PolicyNow, Usage

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")

SECRET = b"s" * 32
DOCUMENTED = Path(__file__).parents[2] / "ops" / "security.md"
EVERYBODY = "URI:fairlead:scheduler,URI:fairlead:admission,URI:fairlead:gateway,URI:fairlead:executor"


def commands() -> list[str]:
    """What ops/security.md says: the authority's, then a machine's; the list of revoked ones, then one more of them."""
    first, second = re.findall(r"```bash\n(umask 077\n.*?)```", DOCUMENTED.read_text(), re.DOTALL)
    return [
        f"umask 077\n#{part}"
        for parts in (first.split("# for each machine"), second.split("# for each certificate"))
        for part in parts
    ]


class Authority:
    """The documented commands, run in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._run(commands()[0])
        self._run(commands()[2])

    def revoke(self, name: str) -> None:
        """And write the list anew."""
        self._run(commands()[3].replace("machine1", name))

    def machine(self, name: str, names: str = EVERYBODY, days: str = "90") -> TlsSettings:
        said = commands()[1].replace("machine1", name).replace("-days 90", f"-days {days}")
        self._run(said.replace("URI:fairlead:scheduler,URI:fairlead:admission", names))
        return TlsSettings(*(str(self.folder / file) for file in (f"{name}.pem", f"{name}.key", "ca.pem")))

    def _run(self, script: str) -> None:
        subprocess.run(["bash", "-e", "-c", script], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture(scope="module")
def machine(authority: Authority) -> TlsSettings:
    return authority.machine("all")


class Stage:
    """A listener with certificates, and links to it."""

    def __init__(self, authority: Authority, machine: TlsSettings, recorder) -> None:
        self.authority = authority
        self.machine = machine
        self.recorder = recorder
        self.heard = recorder()
        self._listeners: list[Listener] = []
        self._links: list[Link] = []

    async def listen(self, settings: TlsSettings | None) -> Listener:
        certificates = None if settings is None else Certificates(settings)
        identity = Identity("scheduler")
        self._listeners.append(
            await listen("tcp://127.0.0.1:0", identity, SECRET, self.heard, certificates=certificates)
        )
        return self._listeners[-1]

    def link(self, settings: TlsSettings | None, receiver=None, service: str = "gateway") -> Link:
        """To the newest listener."""
        certificates = None if settings is None else Certificates(settings)
        address = f"tcp://127.0.0.1:{self._listeners[-1].port}"
        receiver = receiver or self.recorder()
        self._links.append(Link(address, Identity(service, "1"), SECRET, receiver, certificates=certificates))
        self._links[-1].start()
        return self._links[-1]

    async def close(self) -> None:
        for each in (*self._links, *self._listeners):
            await each.close()


@pytest.fixture
async def stage(authority, machine, recorder) -> AsyncIterator[Stage]:
    made = Stage(authority, machine, recorder)
    await made.listen(machine)
    yield made
    await made.close()


async def said(caplog, sentence: str) -> None:
    async with asyncio.timeout(10):
        while sentence not in caplog.text:  # noqa: ASYNC110  nobody is told of a line in the log
            await asyncio.sleep(0.005)


async def test_messages_go_both_ways_over_tls(stage, recorder) -> None:
    mine = recorder()
    link = stage.link(stage.machine, mine)
    await mine.count("opened scheduler")
    assert certificate_of(link).version() == "TLSv1.3"
    for request in range(100):
        link.stream.send(Cancel(request))
    await stage.heard.count("received Cancel", 100)
    stage.heard.streams[0].send(Usage(sequences=bytes(400_000)))
    assert len((await mine.message(Usage)).sequences) == 400_000


async def test_a_blocking_stream_speaks_tls(stage) -> None:
    port = stage._listeners[0].port
    stream = await asyncio.to_thread(
        BlockingStream.connect,
        f"tcp://127.0.0.1:{port}",
        Identity("executor", "0", 1),
        SECRET,
        max_frame_bytes=2**20,
        certificates=Certificates(stage.machine),
    )
    stream.send(Cancel(1))
    await stage.heard.count("received Cancel")
    stage.heard.streams[0].send(Usage(sequences=bytes(400_000)))
    assert len((await asyncio.to_thread(stream.wait))[0].sequences) == 400_000
    assert stream.poll() == []
    stream.close()


async def test_a_certificate_of_another_authority_is_refused_and_both_logs_say_so(stage, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    foreign = Authority(tmp_path / "foreign").machine("other")
    stage.link(TlsSettings(foreign.certificate, foreign.key, stage.machine.ca))
    await said(caplog, "no stream from 127.0.0.1:")
    await said(caplog, "its certificate is refused: ")
    await said(caplog, "before we were let in: if it refuses our certificate, its log says why; trying again")
    assert stage.heard.events == []


async def test_a_listener_of_another_authority_is_left_with_the_reason(stage, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    stage.link(Authority(tmp_path / "foreign").machine("other"))
    await said(caplog, f"no stream to tcp://127.0.0.1:{stage._listeners[0].port}: its certificate is refused: ")
    assert stage.heard.events == []


async def test_an_expired_certificate_is_refused(stage, caplog) -> None:
    caplog.set_level("INFO")
    stage.link(stage.authority.machine("expired", days="-1"))
    await said(caplog, "its certificate is refused: certificate has expired")


async def test_a_machine_is_only_what_its_certificate_says(stage, caplog) -> None:
    only_executor = stage.authority.machine("executor", "URI:fairlead:executor")
    stage.link(only_executor, service="admission")
    sentence = "its certificate is for fairlead:executor, and it says that it is admission (fairlead:admission)"
    await said(caplog, sentence)
    assert stage.heard.events == []
    stage.link(only_executor, service="executor")
    await stage.heard.count("opened executor")


async def test_a_listener_must_be_what_its_certificate_says(stage, recorder, caplog) -> None:
    await stage.listen(stage.authority.machine("gateway", "URI:fairlead:gateway"))
    mine = recorder()
    stage.link(stage.machine, mine)
    await said(caplog, "its certificate is for fairlead:gateway, and it says that it is scheduler")
    assert mine.events == []


async def test_a_peer_that_speaks_no_tls_is_not_let_in(stage, caplog, monkeypatch) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(streams, "HANDSHAKE_S", 0.1)
    stage.link(None)
    await said(caplog, "no handshake within")
    assert stage.heard.events == []


async def test_a_listener_that_speaks_no_tls_is_told_apart(stage, caplog) -> None:
    caplog.set_level("INFO")
    await stage.listen(None)
    stage.link(stage.machine)
    await said(caplog, "the peer does not speak TLS; is streams.tls set at both ends?; trying again")
    assert stage.heard.events == []


async def test_renewed_files_are_used_from_the_next_connection_on(stage, recorder, caplog) -> None:
    caplog.set_level("INFO")
    renewed, again = stage.authority.machine("renewed"), stage.authority.machine("again")
    await stage.listen(renewed)
    first, second, third = recorder(), recorder(), recorder()
    old = stage.link(stage.machine, first)
    await first.count("opened")
    shutil.move(again.certificate, renewed.certificate)
    shutil.move(again.key, renewed.key)
    new = stage.link(stage.machine, second, "executor")
    await second.count("opened")
    before, after = (certificate_of(each).getpeercert(binary_form=True) for each in (old, new))
    assert before != after
    old.stream.send(Cancel(1))
    await stage.heard.count("received Cancel")
    shutil.copy(renewed.key, renewed.certificate)
    stage.link(stage.machine, third, "admission")
    await third.count("opened")
    assert "are no certificate and its key in PEM" in caplog.text
    assert "the certificate read before stays in use" in caplog.text


def with_list(machine: TlsSettings, authority: Authority) -> TlsSettings:
    return msgspec.structs.replace(machine, revoked=str(authority.folder / "revoked.pem"))


async def test_a_revoked_certificate_is_put_out_while_the_others_connect_again(
    tmp_path, recorder, caplog, monkeypatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(streams, "PING_S", 0.05)
    authority = Authority(tmp_path / "ca")
    good, stolen = (with_list(authority.machine(name), authority) for name in ("good", "stolen"))
    stage = Stage(authority, good, recorder)
    await stage.listen(good)
    mine, theirs = recorder(), recorder()
    stage.link(good, mine)
    stage.link(msgspec.structs.replace(stolen, revoked=""), theirs, "executor")
    await mine.count("opened")
    await theirs.count("opened")
    authority.revoke("stolen")
    await theirs.count("closed")
    await mine.count("opened", 2)
    await said(caplog, "its certificate is refused: certificate revoked")
    assert len(await theirs.count("opened")) == 1
    await stage.close()


async def test_a_blocking_stream_leaves_a_listener_whose_certificate_was_revoked(
    tmp_path, recorder, monkeypatch
) -> None:
    monkeypatch.setattr(blocking, "PING_S", 0.05)
    authority = Authority(tmp_path / "ca")
    good, stolen = (with_list(authority.machine(name), authority) for name in ("good", "stolen"))
    stage = Stage(authority, good, recorder)
    port = (await stage.listen(msgspec.structs.replace(stolen, revoked=""))).port

    def connect() -> BlockingStream:
        return BlockingStream.connect(
            f"tcp://127.0.0.1:{port}",
            Identity("executor", "0", 1),
            SECRET,
            max_frame_bytes=2**20,
            certificates=Certificates(good),
        )

    def hear(stream: BlockingStream) -> None:
        for _ in range(100):
            stream.poll(0.1)

    stream = await asyncio.to_thread(connect)
    authority.revoke("stolen")
    with pytest.raises(StreamClosedError, match="the list of revoked certificates is another"):
        await asyncio.to_thread(hear, stream)
    stream.close()
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate revoked"):
        await asyncio.to_thread(connect)
    await stage.close()


def certificate_of(link: Link):
    return link._connection._transport.get_extra_info("ssl_object")


def test_a_proof_holds_only_between_its_two_certificates() -> None:
    for theirs, holds in ((b"a" * 64, True), (b"b" * 64, False)):
        listening = ListenerHandshake(Identity("scheduler"), SECRET)
        connecting = ConnectorHandshake(Identity("gateway"), SECRET)
        listening.bind(b"a" * 64)
        connecting.bind(theirs)
        hello = connecting.answer(listening.challenge)
        if holds:
            listening.answer(hello)
        else:
            with pytest.raises(HandshakeError, match="does not know the secret"):
                listening.answer(hello)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda files: Path(files.ca).unlink(), r"streams.tls.ca: .*: there is no such file"),
        (lambda files: Path(files.key).chmod(0o644), r"mode 0644\); mend it with `chmod 600"),
        (lambda files: Path(files.key).write_text("x"), "are no certificate and its key in PEM"),
        (lambda files: Path(files.ca).write_text("x"), "no authority's certificate in PEM"),
        (lambda files: Path(files.revoked).unlink(), r"streams.tls.revoked: .*: there is no such file"),
        (lambda files: Path(files.revoked).write_text("x"), r"streams.tls.revoked: .*: no list of certificates in PEM"),
        (lambda files: shutil.copy(files.ca, files.revoked), "holds other than one list"),
        (lambda files: Path(files.certificate).write_bytes(b"\xff"), "are no certificate and its key in PEM"),
    ],
)
def test_files_that_cannot_be_used_are_refused_with_what_is_wrong(
    tmp_path, authority, machine, change, sentence: str
) -> None:
    files = msgspec.structs.astuple(with_list(machine, authority))
    copies = TlsSettings(*(shutil.copy(path, tmp_path) for path in files))
    Certificates(copies)
    change(copies)
    with pytest.raises(AddressError, match=sentence):
        Certificates(copies)


def test_without_certificates_tcp_beyond_this_machine_is_refused() -> None:
    with pytest.raises(AddressError, match="set certificate, key and ca there"):
        parse_address("tcp://10.0.0.1:80")


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


async def test_all_services_serve_a_request_over_tls(authority, tmp_path, recorder, monkeypatch) -> None:
    machine = authority.machine("one")
    streamed = StreamSettings(admission=free_address(), scheduler=free_address(), tls=machine)
    monkeypatch.setattr(joined_services, "Deployment", partial(Deployment, streams=streamed))
    house = House(tmp_path, recorder())
    await house.scheduler.start()
    await house.admission.start()
    house.add_executor()
    for service in ("admission", "scheduler"):
        address = getattr(streamed, service)
        identity, certificates = Identity("gateway", str(GATEWAY)), Certificates(machine)
        house.links[service] = Link(address, identity, joined_services.SECRET, house.gateway, certificates=certificates)
        house.links[service].start()
    await house.gateway.until(
        lambda: any(isinstance(each, Capacity) and each.num_executors for each in house.gateway.messages)
    )
    await house.gateway.message(PolicyNow)
    request = house.submit(20, 30)
    assert (await house.ended(request)).output_tokens == 30
    assert house.tokens()[request] == expected(request, 20, 30)
    assert certificate_of(house.links["scheduler"]).version() == "TLSv1.3"
    await house.stop()
