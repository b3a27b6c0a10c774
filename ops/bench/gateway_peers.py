"""What the gateway is measured against, each a process: a raw socket writer (the floor) and a FastAPI server.

`python -m ops.bench.gateway_peers raw|fastapi FEED TEXTS`: connects to the Unix socket FEED, takes the token frames the
gateway takes, listens on a free port of 127.0.0.1 and prints it. TEXTS is a JSON list: the text of each token id. For
every stream that a client opens one byte goes back on FEED.
"""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import fastapi
import pydantic
import uvicorn
import uvloop
from fastapi.responses import StreamingResponse

from services.framing import HEADER_BYTES, FrameBuffer
from services.gateway.chunks import http_chunk
from services.gateway.responses import ChatShape
from services.wire import TokenFrame, decoder

MAX_FRAME_BYTES = 2**20
OPENED = b"."
RESPONSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


# --- the floor ---------------------------------------------------------------------------------------------------


class RawStream(asyncio.Protocol):
    """One client: its request is not even looked at."""

    def __init__(self, floor: "RawFeed") -> None:
        self._floor = floor

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Nothing to do before the request."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """The request."""
        if data.endswith(b"}"):
            self._transport.write(RESPONSE_HEAD)
            self._floor.opened(self._transport)


class RawFeed(asyncio.Protocol):
    """Writes the same bytes to every stream whenever a frame is complete: no token is looked at either."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks
        self._streams: list[asyncio.Transport] = []
        self._buffer = bytearray()
        self._step = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The driver is there."""
        self._transport = cast("asyncio.Transport", transport)

    def opened(self, stream: asyncio.Transport) -> None:
        """A client asked for a stream."""
        self._streams.append(stream)
        self._transport.write(OPENED)

    def data_received(self, data: bytes) -> None:
        """Frames; one without a body ends every stream."""
        self._buffer += data
        while len(self._buffer) >= HEADER_BYTES:
            length = int.from_bytes(self._buffer[:HEADER_BYTES], "little")
            if len(self._buffer) < HEADER_BYTES + length:
                return
            del self._buffer[: HEADER_BYTES + length]
            if not length:
                for stream in self._streams:
                    stream.write(LAST_CHUNK)
                self._streams.clear()
                self._step = 0
                return
            chunk = self._chunks[self._step % len(self._chunks)]
            self._step += 1
            for stream in self._streams:
                stream.write(chunk)


async def raw(feed: str, texts: list[str]) -> None:
    """Run the floor for ever."""
    shape = ChatShape(answer_id="chatcmpl-" + "0" * 24, created=int(time.time()), model="demo", include_usage=False)
    affixes = shape.choice(0)
    chunks = [http_chunk(affixes.prefix + json.dumps(text).encode() + affixes.suffix) for text in texts]
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_unix_connection(lambda: RawFeed(chunks), feed)
    server = await loop.create_server(lambda: RawStream(protocol), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# --- a server as one would write it with FastAPI -----------------------------------------------------------------


class Message(pydantic.BaseModel):
    """A turn of a chat."""

    role: str
    content: str


class ChatRequest(pydantic.BaseModel):
    """What is asked."""

    model: str
    messages: list[Message]
    stream: bool = False
    max_tokens: int | None = None


class Delta(pydantic.BaseModel):
    """New text."""

    content: str | None = None


class ChunkChoice(pydantic.BaseModel):
    """A choice of a chunk."""

    index: int
    delta: Delta
    logprobs: None = None
    finish_reason: str | None = None


class Chunk(pydantic.BaseModel):
    """A chunk of a streamed answer."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]


class QueueFeed(asyncio.Protocol):
    """Decodes the frames and puts each token's text in its stream's queue."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self._frames = FrameBuffer(MAX_FRAME_BYTES)
        self._queues: list[asyncio.Queue[str | None]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The driver is there."""
        self._transport = cast("asyncio.Transport", transport)

    def open(self) -> "asyncio.Queue[str | None]":
        """A queue of its own for a stream."""
        self._queues.append(asyncio.Queue())
        self._transport.write(OPENED)
        return self._queues[-1]

    def data_received(self, data: bytes) -> None:
        """Frames; one without a body ends every stream."""
        for view in self._frames.feed(data):
            if not len(view):
                for queue in self._queues:
                    queue.put_nowait(None)
                self._queues = []
                continue
            frame = decoder.decode(view)
            if isinstance(frame, TokenFrame):
                tokens = memoryview(frame.tokens).cast("i").tolist()
                for queue, token in zip(self._queues, tokens, strict=True):
                    queue.put_nowait(self._texts[token])


async def fast_api(feed: str, texts: list[str]) -> None:
    """Run the FastAPI server for ever."""
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_unix_connection(lambda: QueueFeed(texts), feed)
    app = fastapi.FastAPI()

    async def chunks(request: ChatRequest) -> AsyncIterator[str]:
        queue = protocol.open()
        answer_id, created = "chatcmpl-" + "0" * 24, int(time.time())
        while (text := await queue.get()) is not None:
            choice = ChunkChoice(index=0, delta=Delta(content=text))
            chunk = Chunk(id=answer_id, created=created, model=request.model, choices=[choice])
            yield f"data: {chunk.model_dump_json()}\n\n"
        yield "data: [DONE]\n\n"

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> Any:
        return StreamingResponse(chunks(request), media_type="text/event-stream")

    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", access_log=False, backlog=1024)
    server = uvicorn.Server(config)
    serving = loop.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("raw", "fastapi"))
    parser.add_argument("feed")
    parser.add_argument("texts", type=Path)
    args = parser.parse_args()
    texts = json.loads(args.texts.read_text())
    uvloop.run(raw(args.feed, texts) if args.kind == "raw" else fast_api(args.feed, texts))


if __name__ == "__main__":
    main()
