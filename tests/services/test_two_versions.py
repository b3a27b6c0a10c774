"""Two versions side by side: neighbours of protocol 1, written by hand from its bytes, through whole requests.

They share no code with the handshake here, accept no number but 1, know no ping over Unix sockets, and fail on anything
that protocol 1 does not have.
"""

import asyncio
import hashlib
import hmac
import json
import secrets
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from joined_services import GATEWAY, SECRET, House

from services.blocking import BlockingStream
from services.framing import Identity
from services.transport import Link
from services.wire import Cancel

KNOWN = set(json.loads(Path(__file__).with_name("wire_protocol_1.json").read_text())) - {"ping", "pong"}
INFO: dict[str, Any] = {
    "model": "demo",
    "architecture": "old",
    "num_parameters": 1,
    "dtype": "float32",
    "device": "cpu",
    "attention": "none",
    "num_blocks": 64,
    "block_tokens": 16,
    "max_sequence_tokens": 512,
    "vocabulary_size": 1000,
}


def proof(side: bytes, theirs: bytes, ours: bytes, name: str) -> bytes:
    return hmac.digest(SECRET, side + theirs + ours + name.encode(), hashlib.sha256)


class Old:
    """An end of a stream as protocol 1 has it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, address: str, service: str, instance: str) -> "Old":
        old = cls(*await asyncio.open_unix_connection(address.removeprefix("unix://")))
        challenge = await old.next("challenge")
        assert challenge.get("protocol", 1) == 1, "protocol 1 goes on with nothing else"
        nonce = secrets.token_bytes(32)
        own = proof(b"connect", challenge["nonce"], nonce, f"{service}/{instance}/1")
        hello = {"protocol": 1, "service": service, "instance": instance, "epoch": 1, "nonce": nonce, "proof": own}
        old.say("hello", **hello)
        welcome = await old.next("welcome")
        name = f"{welcome['service']}/{welcome['instance']}/{welcome['epoch']}"
        assert welcome["proof"] == proof(b"listen", nonce, challenge["nonce"], name)
        return old

    async def accept(self, service: str) -> dict[str, Any]:
        nonce = secrets.token_bytes(32)
        self.say("challenge", nonce=nonce)
        hello = await self.next("hello")
        assert hello["protocol"] == 1, "protocol 1 goes on with nothing else"
        name = f"{hello['service']}/{hello['instance']}/{hello['epoch']}"
        assert hello["proof"] == proof(b"connect", nonce, hello["nonce"], name)
        own = proof(b"listen", hello["nonce"], nonce, f"{service}/0/1")
        self.say("welcome", service=service, instance="0", epoch=1, proof=own)
        return hello

    def say(self, tag: str, **fields: Any) -> None:
        body = msgspec.msgpack.encode({"t": tag, **fields})
        self._writer.write(len(body).to_bytes(4, "little") + body)

    async def next(self, *tags: str) -> dict[str, Any]:
        """The next message that is one of these."""
        async with asyncio.timeout(10):
            while True:
                size = int.from_bytes(await self._reader.readexactly(4), "little")
                message: dict[str, Any] = msgspec.msgpack.decode(await self._reader.readexactly(size))
                assert message["t"] in KNOWN, f"protocol 1 does not know {message['t']}"
                if message["t"] in tags:
                    return message

    def close(self) -> None:
        self._writer.close()


async def compute(executor: Old, computed: list[int]) -> None:
    """As an executor of protocol 1: every token is the position behind it."""
    executor.say("executor_ready", info=INFO)
    while True:
        step = await executor.next("step", "forget")
        if step["t"] == "forget":
            continue
        samples = np.frombuffer(step["samples"], np.bool_)
        ends = np.frombuffer(step["positions"], np.int32) + np.frombuffer(step["num_tokens"], np.int32)
        tokens = ends[samples].astype(np.int32)
        computed += tokens.tolist()
        stamps = {"launched_ns": 1, "computed_ns": 2, "returned_ns": 3}
        executor.say("step_result", step=step["step"], tokens=tokens.tobytes(), ended=bytes(len(tokens)), **stamps)


@pytest.fixture
async def house(tmp_path: Path, recorder):
    made = House(tmp_path, recorder())
    await made.scheduler.start()
    await made.admission.start()
    yield made
    await made.stop()


async def test_a_gateway_and_an_executor_of_protocol_1_are_served_by_new_services(house) -> None:
    streams = house.deployment.streams
    executor = await Old.connect(streams.scheduler, "executor", "0")
    computing = asyncio.create_task(compute(executor, []))
    frames = await Old.connect(streams.scheduler, "gateway", str(GATEWAY))
    answers = await Old.connect(streams.admissions[0], "gateway", str(GATEWAY))
    assert (await answers.next("policy_now"))["revision"] == 1
    while not (await answers.next("capacity"))["num_executors"]:
        pass
    request = GATEWAY << 32
    prompt = np.arange(20, dtype=np.int32).tobytes()
    answers.say(
        "submit",
        request=request,
        tenant="acme",
        tier="free",
        prompt=prompt,
        max_output_tokens=5,
        sampling=[{"seed": 3}],
        received_ns=5,
    )
    assert (await answers.next("admitted"))["request"] == request
    tokens: list[int] = []
    while len(tokens) < 5:
        tokens += np.frombuffer((await frames.next("tokens"))["tokens"], np.int32).tolist()
    assert tokens == [20, 21, 22, 23, 24]
    assert (await frames.next("ended"))["output_tokens"] == 5
    assert {stream.peer.protocol for stream in house.scheduler._gateways.values()} == {1}
    computing.cancel()
    for each in (executor, frames, answers):
        each.close()


@pytest.mark.parametrize("blocks", [False, True])
async def test_a_listener_of_protocol_1_is_spoken_to_as_it_knows(tmp_path: Path, recorder, blocks: bool) -> None:
    address = tmp_path / "old.sock"
    arrived: asyncio.Queue[Old] = asyncio.Queue()
    server = await asyncio.start_unix_server(lambda *ends: arrived.put_nowait(Old(*ends)), address)
    mine = recorder()
    link = Link(f"unix://{address}", Identity("executor", "0", 7), SECRET, mine)
    if blocks:
        identity = Identity("executor", "0", 7)
        connecting = asyncio.create_task(
            asyncio.to_thread(BlockingStream.connect, f"unix://{address}", identity, SECRET, max_frame_bytes=2**20)
        )
    else:
        link.start()
    old = await arrived.get()
    assert (await old.accept("scheduler"))["service"] == "executor"
    old.say("cancel", request=5)
    if blocks:
        stream = await connecting
        assert await asyncio.to_thread(stream.wait) == [Cancel(5)]
        assert not [each for each in threading.enumerate() if each.name == "pings"]
        stream.send(Cancel(6))
    else:
        assert await mine.message(Cancel) == Cancel(5)
        link.stream.send(Cancel(6))
    assert (await old.next("cancel"))["request"] == 6
    old.close()
    if blocks:
        stream.close()
    await link.close()
    server.close()


async def test_old_and_new_executors_serve_one_scheduler(house, recorder) -> None:
    executor = await Old.connect(house.deployment.streams.scheduler, "executor", "old")
    computed: list[int] = []
    computing = asyncio.create_task(compute(executor, computed))
    house.add_executor()
    streams = house.deployment.streams
    for service, address in (("admission", streams.admissions[0]), ("scheduler", streams.scheduler)):
        house.links[service] = Link(address, Identity("gateway", str(GATEWAY)), SECRET, house.gateway)
        house.links[service].start()
    async with asyncio.timeout(10):
        while len(house.scheduler._core.executors) < 2 or not house.links["admission"].stream:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    requests = [house.submit(20, 30) for _ in range(6)]
    ends = [await house.ended(request) for request in requests]
    assert [each.outcome for each in ends] == ["finished"] * 6
    assert computed
    computing.cancel()
    executor.close()
