"""Readers of streamed answers, in a process of their own: `python -m ops.bench.readers`.

Takes one order a line on stdin, a JSON object: {port, key, streams, text}. Opens that many streams, reads them to the
end, checks that each carried exactly `text`, and answers `done BYTES` or `wrong SENTENCE`.
"""

import asyncio
import json
import sys
from typing import Any, cast

import uvloop

END = b"0\r\n\r\n"


class Reader(asyncio.Protocol):
    """One stream; keeps what it got and looks at it only when all is over."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.pieces: list[bytes] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Text."""
        self.pieces.append(data)
        if data.endswith(END):
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        """All is read, or the server went away: the check will tell."""
        if not self.ended.done():
            self.ended.set_result(None)

    @property
    def text(self) -> str:
        """What was said."""
        lines = b"".join(self.pieces).split(b"\n")
        events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
        return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)


def request(key: str, **more: Any) -> bytes:
    """A streamed chat request as bytes."""
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "stream": True, **more})
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


async def read(order: dict[str, Any]) -> str:
    """Carry out an order."""
    loop = asyncio.get_running_loop()
    asked = request(order["key"])
    readers: list[Reader] = []
    for _ in range(order["streams"]):
        _, reader = await loop.create_connection(lambda: Reader(asked), "127.0.0.1", order["port"])
        readers.append(reader)
    await asyncio.gather(*(reader.ended for reader in readers))
    for index, reader in enumerate(readers):
        if reader.text != order["text"]:
            return f"wrong stream {index} got {len(reader.text)} characters of {len(order['text'])}"
    return f"done {sum(len(piece) for reader in readers for piece in reader.pieces)}"


def main() -> None:
    """Entry point of the process."""
    for line in sys.stdin:
        print(uvloop.run(read(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
