"""A peer that says nothing while it is pinged is taken for dead; one that is alive and does not read is not."""

import asyncio
import socket
import threading
import time
from pathlib import Path

import pytest

from services import blocking, streams
from services.blocking import BlockingStream, StreamClosedError
from services.framing import ConnectorHandshake, FrameBuffer, decode_message, encode_frame
from services.transport import Identity, Link, Listener, listen
from services.wire import AnyMessage, Cancel, Usage
from services.wire_operator import Ping, Pong

SECRET = b"s" * 32
BIG = Usage(sequences=bytes(100_000))


@pytest.fixture(autouse=True)
def quick_pings(monkeypatch) -> None:
    monkeypatch.setattr(streams, "PING_S", 0.02)
    monkeypatch.setattr(blocking, "PING_S", 0.02)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix://{tmp_path}/test.sock"


async def opened(address: str, receiver, silence_s: float = 0.1, now_ns=time.monotonic_ns) -> Listener:
    return await listen(
        address, Identity("scheduler"), SECRET, receiver, silence_s=silence_s, buffer_bytes=2**16, now_ns=now_ns
    )


class Clock:
    """Counts how often a listener looks at it, which it does for each ping."""

    def __init__(self) -> None:
        self._looks = asyncio.Semaphore(0)

    def __call__(self) -> int:
        self._looks.release()
        return time.monotonic_ns()

    async def looks(self, number: int) -> None:
        async with asyncio.timeout(10):
            for _ in range(number):
                await self._looks.acquire()


class RawPeer:
    """A connector by hand: it shakes hands and from then on does what a test says."""

    def __init__(self, address: str, protocol: int = 2) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(address.removeprefix("unix://"))
        self._frames = FrameBuffer(2**20)
        self.messages: list[AnyMessage] = []
        shake = ConnectorHandshake(Identity("gateway", "1", 1, protocol), SECRET)
        self.say(shake.answer(self.next()))
        shake.finish(self.next())

    def say(self, message) -> None:
        self.socket.sendall(encode_frame(message))

    def next(self) -> AnyMessage:
        while not self.messages:
            data = self.socket.recv(2**16)
            if not data:
                raise EOFError
            self.messages.extend(decode_message(frame) for frame in self._frames.feed(data))
        return self.messages.pop(0)


async def test_a_peer_that_stops_answering_loses_its_stream_with_the_reason(address, recorder) -> None:
    heard = recorder()
    listener = await opened(address, heard)
    peer = await asyncio.to_thread(RawPeer, address)
    assert await heard.count("closed") == ["closed gateway: silent for 0.1 s"]
    assert listener._streams == []
    peer.socket.close()
    await listener.close()


async def test_a_peer_that_answers_nothing_else_than_pings_keeps_its_stream(address, recorder) -> None:
    heard = recorder()
    listener = await opened(address, heard)
    peer = await asyncio.to_thread(RawPeer, address)

    def answer(number: int) -> None:
        for _ in range(number):
            ping = peer.next()
            assert isinstance(ping, Ping)
            peer.say(Pong(ping.sent_ns, 0, 0))

    await asyncio.to_thread(answer, 20)
    peer.say(Cancel(1))
    await heard.count("received Cancel")
    assert not [event for event in heard.events if event.startswith("closed")]
    peer.socket.close()
    await listener.close()


async def test_a_peer_that_is_alive_and_does_not_read_stalls_and_is_not_taken_for_dead(address, recorder) -> None:
    heard, mine, clock = recorder(), recorder(), Clock()
    listener = await opened(address, heard, now_ns=clock)
    link = Link(address, Identity("gateway", "1"), SECRET, mine, silence_s=1e9)
    link.start()
    await mine.count("opened")
    link._connection._transport.pause_reading()
    while "stalled" not in heard.events:
        heard.streams[0].send(BIG)
    stream = heard.streams[0]
    await clock.looks(50)
    assert stream.is_open
    link._connection._transport.resume_reading()
    await heard.count("resumed")
    await link.close()
    await listener.close()


async def test_a_loop_that_was_held_up_does_not_take_its_peers_for_silent(address, recorder) -> None:
    heard = recorder()
    listener = await opened(address, heard, silence_s=0.5)
    peer = await asyncio.to_thread(RawPeer, address)
    await heard.count("opened")
    threading.Event().wait(0.8)  # the whole loop stands still
    peer.say(Cancel(1))
    await heard.count("received Cancel")
    peer.socket.close()
    await listener.close()


async def test_a_link_leaves_a_listener_that_stopped_and_connects_again(address, recorder) -> None:
    heard, mine = recorder(), recorder()
    listener = await opened(address, heard, silence_s=1e9)
    link = Link(address, Identity("gateway", "1"), SECRET, mine, silence_s=0.1)
    link.start()
    await heard.count("opened")
    heard.streams[0]._ping.cancel()
    heard.streams[0]._compare = lambda message: None
    assert await mine.count("closed") == ["closed scheduler: silent for 0.1 s"]
    await mine.count("opened", 2)
    await link.close()
    await listener.close()


async def test_a_peer_of_protocol_1_gets_no_pings_and_may_be_silent(address, recorder) -> None:
    heard = recorder()
    listener = await opened(address, heard)
    peer = await asyncio.to_thread(RawPeer, address, 1)
    await heard.count("opened")
    stream = heard.streams[0]
    assert (stream.peer.protocol, stream._ping, stream._num_pings) == (1, None, 0)
    stream.send(Cancel(1))
    assert await asyncio.to_thread(peer.next) == Cancel(1)
    peer.socket.close()
    await listener.close()


async def test_a_blocking_stream_pings_while_its_process_computes(address, recorder) -> None:
    heard, clock = recorder(), Clock()
    listener = await opened(address, heard, now_ns=clock)
    identity = Identity("executor", "0", 1)
    stream = await asyncio.to_thread(
        BlockingStream.connect, address, identity, SECRET, max_frame_bytes=2**20, silence_s=10
    )
    await heard.count("opened")
    await clock.looks(50)
    assert heard.events == ["opened executor 0"]
    heard.streams[0].send(Cancel(1))
    assert await asyncio.to_thread(stream.wait) == [Cancel(1)]
    stream.close()
    await listener.close()


async def test_a_blocking_stream_leaves_a_peer_that_is_silent(address, recorder) -> None:
    heard = recorder()
    listener = await opened(address, heard, silence_s=1e9)
    identity = Identity("executor", "0", 1)
    stream = await asyncio.to_thread(
        BlockingStream.connect, address, identity, SECRET, max_frame_bytes=2**20, silence_s=0.1
    )
    await heard.count("opened")
    heard.streams[0]._ping.cancel()
    heard.streams[0]._compare = lambda message: None
    with pytest.raises(StreamClosedError, match=r"silent for 0.1 s"):
        await asyncio.to_thread(stream.wait)
    stream.close()
    await listener.close()


async def test_a_stream_closes_although_its_peer_reads_no_more(address, recorder, monkeypatch) -> None:
    monkeypatch.setattr(streams, "FLUSH_S", 0.05)
    heard = recorder()
    listener = await opened(address, heard, silence_s=1e9)
    peer = await asyncio.to_thread(RawPeer, address)
    await heard.count("opened")
    while "stalled" not in heard.events:
        heard.streams[0].send(BIG)
    heard.streams[0].close()
    assert await heard.count("closed") == ["closed gateway: closed by this process"]
    peer.socket.close()
    await listener.close()
