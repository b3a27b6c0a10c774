import asyncio
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from services import streams, transport
from services.blocking import BlockingStream
from services.framing import (
    ConnectorHandshake,
    FrameBuffer,
    FrameError,
    HandshakeError,
    ListenerHandshake,
    encode_frame,
    parse_address,
)
from services.transport import AddressError, Identity, Link, Listener, inproc_pair, listen
from services.wire import Cancel, Usage
from services.wire_handshake import Challenge, Hello, Welcome
from services.wire_steps import ForgetMessage

SECRET = b"s" * 32
BIG = Usage(sequences=bytes(100_000))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix://{tmp_path}/run/test.sock"


@pytest.fixture
async def heard(recorder):
    return recorder()


@pytest.fixture
async def listener(address: str, heard) -> AsyncIterator[Listener]:
    opened = await listen(address, Identity("scheduler"), SECRET, heard, max_frame_bytes=2**20, buffer_bytes=2**16)
    yield opened
    await opened.close()


@pytest.fixture
async def link_to(address: str, recorder) -> AsyncIterator[Callable[..., Link]]:
    links: list[Link] = []

    def connect(receiver, *, secret: bytes = SECRET, instance: str = "1", to: str = "") -> Link:
        links.append(Link(to or address, Identity("gateway", instance), secret, receiver))
        links[-1].start()
        return links[-1]

    yield connect
    for link in links:
        await link.close()


def bind(server: socket.socket, address: str) -> None:
    path = Path(address.removeprefix("unix://"))
    path.parent.mkdir()
    server.bind(str(path))
    server.listen()


def say(address: str, data: bytes) -> None:
    """Send bytes and read until the listener closes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(address.removeprefix("unix://"))
        client.sendall(data)
        while client.recv(1000):
            pass


async def connect_blocking(address: str, secret: bytes = SECRET, epoch: int = 1) -> BlockingStream:
    identity = Identity("executor", "0", epoch)
    return await asyncio.to_thread(BlockingStream.connect, address, identity, secret, max_frame_bytes=2**20)


async def test_messages_arrive_both_ways_in_the_order_sent(listener, heard, recorder, link_to) -> None:
    mine = recorder()
    link = link_to(mine)
    await mine.count("opened scheduler 0")
    for request in range(100):
        link.stream.send(Cancel(request))
    await heard.count("received Cancel", 100)
    heard.streams[0].send(BIG)
    assert (await mine.message(Usage)).sequences == BIG.sequences
    assert [message.request for message in heard.messages] == list(range(100))
    assert heard.events[0] == "opened gateway 1"


async def test_tcp_carries_the_same_messages(heard, recorder, link_to) -> None:
    listener = await listen("tcp://127.0.0.1:0", Identity("scheduler"), SECRET, heard)
    mine = recorder()
    link = link_to(mine, to=f"tcp://127.0.0.1:{listener.port}")
    await mine.count("opened")
    link.stream.send(BIG)
    await heard.count("received Usage")
    await listener.close()


async def test_a_blocking_stream_speaks_to_an_asyncio_listener(listener, heard, address) -> None:
    blocking = await connect_blocking(address)
    blocking.send(ForgetMessage([1, 2]))
    assert (await heard.message(ForgetMessage)).released == [1, 2]
    assert blocking.poll() == []
    heard.streams[0].send(BIG)
    assert await asyncio.to_thread(blocking.wait) == [BIG]
    blocking.close()
    assert await heard.count("closed") == ["closed executor: closed by the peer"]
    assert listener._streams == listener._waiting == []


async def test_a_connector_with_another_secret_is_refused_and_others_stay(listener, heard, address, caplog) -> None:
    good = await connect_blocking(address, epoch=2)
    with pytest.raises(Exception, match=r"closed by the peer|Connection reset"):
        await connect_blocking(address, secret=b"x" * 32)
    assert "executor 0 does not know the secret of this deployment" in caplog.text
    good.send(Cancel(1))
    await heard.count("received Cancel")
    assert len(heard.events) == 2
    good.close()


async def test_a_listener_that_does_not_know_the_secret_is_left(address) -> None:
    def impostor(server: socket.socket) -> None:
        connection, _ = server.accept()
        connection.sendall(encode_frame(Challenge(nonce=bytes(32))))
        connection.recv(1000)
        connection.sendall(encode_frame(Welcome("scheduler", "0", 0, b"guess")))
        connection.close()

    with socket.socket(socket.AF_UNIX) as server:
        bind(server, address)
        answering = asyncio.create_task(asyncio.to_thread(impostor, server))
        with pytest.raises(HandshakeError, match="scheduler 0 does not know the secret"):
            await connect_blocking(address)
        await answering


async def test_another_protocol_number_is_refused_by_name(listener, address, caplog) -> None:
    hello = encode_frame(Hello(999, "gateway", "1", 1, bytes(32), b""))
    await asyncio.to_thread(say, address, hello)
    assert "the peer speaks protocol 999 where both know 1" in caplog.text


async def test_connections_that_prove_nothing_make_way_for_those_that_do(listener, heard, address, monkeypatch) -> None:
    monkeypatch.setattr(transport, "MOST_UNPROVED", 3)
    idle = [socket.socket(socket.AF_UNIX) for _ in range(5)]
    for each in idle:
        each.settimeout(10)
        each.connect(address.removeprefix("unix://"))
        await asyncio.to_thread(each.recv, 1000)  # its Challenge: it is one of those that wait
    good = await connect_blocking(address)
    good.send(Cancel(1))
    await heard.count("received Cancel")
    assert await asyncio.to_thread(idle[0].recv, 1000) == b""
    assert len(listener._waiting) == 2
    for each in (*idle, good):
        each.close()


async def test_a_proof_of_one_connection_is_of_no_use_on_another(listener, heard, address) -> None:
    said: list[bytes] = []

    class Overheard(socket.socket):
        def sendall(self, data: bytes, flags: int = 0) -> None:
            said.append(data)
            super().sendall(data, flags)

    overheard = Overheard(socket.AF_UNIX)
    await asyncio.to_thread(overheard.connect, address.removeprefix("unix://"))
    good = await asyncio.to_thread(
        BlockingStream, overheard, Identity("executor", "0", 1), SECRET, max_frame_bytes=2**20, silence_s=5
    )
    await heard.count("opened")
    await asyncio.to_thread(say, address, said[0])
    assert len(heard.events) == 1
    good.close()


def test_a_proof_of_one_side_is_none_of_the_other() -> None:
    ours, theirs = ListenerHandshake(Identity("a"), SECRET), ConnectorHandshake(Identity("a"), b"another secret!!")
    hello = theirs.answer(ours.challenge)
    reflected = ConnectorHandshake(Identity("a"), SECRET)
    reflected.answer(Challenge(hello.nonce))
    with pytest.raises(HandshakeError, match="does not know the secret"):
        reflected.finish(Welcome("a", "0", 0, hello.proof))


@pytest.mark.parametrize("newest", [1, 2, 3])
def test_two_versions_speak_the_older_of_theirs_and_nobody_can_lower_it(newest: int) -> None:
    ours, theirs = ListenerHandshake(Identity("a"), SECRET), ConnectorHandshake(Identity("b", protocol=newest), SECRET)
    hello = theirs.answer(ours.challenge)
    peer, welcome = ours.answer(hello)
    assert (peer.protocol, theirs.finish(welcome).protocol) == (min(2, newest), min(2, newest))
    if newest > 1:
        with pytest.raises(HandshakeError, match="speaks protocol 1 where both know 2"):
            ours.answer(replace(hello, protocol=1))
        unmarked = replace(hello, protocol=1, nonce=bytes(32))
        with pytest.raises(HandshakeError, match="does not know the secret"):
            ours.answer(unmarked)


async def test_a_silent_connection_is_closed_after_the_handshake_timeout(
    listener, address, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(streams, "HANDSHAKE_S", 0.01)
    await asyncio.to_thread(say, address, b"")
    assert "no handshake within 0.01 s" in caplog.text


async def test_an_oversized_frame_closes_that_connection_only(listener, heard, recorder, link_to, address) -> None:
    good = recorder()
    link = link_to(good)
    await good.count("opened")
    bad = await connect_blocking(address)
    bad._socket.sendall((2**20 + 1).to_bytes(4, "little"))
    reason = (await heard.count("closed executor"))[0]
    assert reason.endswith("a frame of 1048577 bytes; at most 1048576 are allowed")
    link.stream.send(Cancel(1))
    await heard.count("received Cancel")
    bad.close()


async def test_a_malformed_frame_closes_that_connection_with_its_reason(listener, heard, address) -> None:
    bad = await connect_blocking(address)
    bad._socket.sendall(b"\x03\x00\x00\x00\xc1\xc1\xc1")
    assert "malformed frame of 3 bytes" in (await heard.count("closed executor"))[0]
    bad.close()


async def test_an_older_epoch_of_the_same_instance_is_refused(listener, heard, address, caplog) -> None:
    newer = await connect_blocking(address, epoch=5)
    with pytest.raises(Exception, match=r"closed by the peer|Connection reset"):
        await connect_blocking(address, epoch=4)
    assert "executor 0 has epoch 4; epoch 5 came before" in caplog.text
    newer.send(Cancel(1))
    await heard.count("received Cancel")
    newer.close()


async def test_a_newer_epoch_ends_the_older_stream_before_it_opens(listener, heard, address) -> None:
    older = await connect_blocking(address, epoch=5)
    newer = await connect_blocking(address, epoch=6)
    assert heard.events == [
        "opened executor 0",
        "closed executor: replaced by a newer connection of the same instance",
        "opened executor 0",
    ]
    older.close()
    newer.close()


async def test_a_peer_that_does_not_read_stalls_the_stream_and_resumes_it(listener, heard, address) -> None:
    blocking = await connect_blocking(address)
    await heard.count("opened")
    sent = 0
    while "stalled" not in heard.events:
        heard.streams[0].send(BIG)
        sent += 1
    assert heard.streams[0].buffered_bytes > 2**16
    received = 0
    while received < sent:
        received += len(await asyncio.to_thread(blocking.wait))
    await heard.count("resumed")
    blocking.close()


async def test_a_stalled_stream_is_closed_before_its_buffer_grows_without_bound(listener, heard, address) -> None:
    blocking = await connect_blocking(address)
    await heard.count("opened")
    for _ in range(200):
        heard.streams[0].send(BIG)
    assert "bytes were sent and not read" in (await heard.count("closed executor"))[0]
    blocking.close()


async def test_a_link_connects_again_when_the_listener_comes_back(address, recorder, link_to) -> None:
    mine, heard = recorder(), recorder()
    link = link_to(mine)
    first = await listen(address, Identity("scheduler"), SECRET, heard)
    await mine.count("opened")
    await first.close()
    await mine.count("closed scheduler")
    assert link.stream is None
    second = await listen(address, Identity("scheduler"), SECRET, heard)
    await mine.count("opened", 2)
    link.stream.send(Cancel(7))
    await heard.count("received Cancel")
    await second.close()


async def test_a_socket_file_is_private_and_is_removed_at_the_end(address, heard) -> None:
    path = Path(address.removeprefix("unix://"))
    listener = await listen(address, Identity("scheduler"), SECRET, heard)
    assert [mode(path), mode(path.parent)] == [0o600, 0o700]
    await listener.close()
    assert files(path.parent) == []


async def test_a_socket_file_of_a_dead_process_is_replaced_and_of_a_living_one_is_not(address, heard) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        bind(dead, address)
    listener = await listen(address, Identity("scheduler"), SECRET, heard)
    with pytest.raises(AddressError, match="another process listens there"):
        await listen(address, Identity("scheduler"), SECRET, heard)
    await listener.close()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("http://localhost:1", "not an address"),
        ("unix://relative", "not an address"),
        ("tcp://localhost", "not an address"),
        ("tcp://localhost:70000", "not an address"),
        ("unix:///" + "a" * 120, "holds at most 107 bytes"),
        ("tcp://10.0.0.1:80", "without streams.tls"),
    ],
)
def test_an_unusable_address_is_refused_with_what_is_allowed(address: str, sentence: str) -> None:
    with pytest.raises(AddressError, match=sentence):
        parse_address(address)


def test_tcp_beyond_this_machine_can_be_allowed() -> None:
    assert parse_address("tcp://10.0.0.1:80", allow_plaintext=True) == ("10.0.0.1", 80)
    assert parse_address("tcp://[::1]:80") == ("::1", 80)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 7, 1000])
def test_frames_are_the_same_however_the_bytes_are_cut(size: int) -> None:
    payloads = [b"", b"a", b"bc" * 300, b"d" * 5]
    sent = b"".join(len(payload).to_bytes(4, "little") + payload for payload in payloads)
    frames = FrameBuffer(1000)
    received = [
        bytes(frame) for start in range(0, len(sent), size) for frame in frames.feed(sent[start : start + size])
    ]
    assert received == payloads


def test_an_announced_length_above_the_limit_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(FrameError, match="a frame of 1001 bytes; at most 1000 are allowed"):
        list(FrameBuffer(1000).feed((1001).to_bytes(4, "little")))


async def test_an_inproc_pair_passes_messages_stalls_and_closes_like_a_socket(recorder) -> None:
    left, right = recorder(), recorder()
    a, b = inproc_pair(left, right, identity_a=Identity("gateway", "3"), buffer_bytes=1000)
    assert right.events == ["opened gateway 3"]
    b.pause_reading()
    a.send(BIG)
    assert left.events == ["opened b 0", "stalled"]
    b.resume_reading()
    await left.count("resumed")
    assert right.messages == [BIG]
    a.close()
    assert await right.count("closed") == ["closed gateway: closed by the peer"]
    assert not a.is_open
