"""Readers that want a number of tokens, in a process of their own: `python -m ops.bench.token_readers`.

Takes one order a line on stdin, a JSON object: {port, key, streams, tokens}, perhaps with a seed. Opens that many
streams at once, reads them to the end and answers `done SECONDS P99`, the P99 of the times between two pieces of a
stream in seconds, or `wrong SENTENCE` if one was cut short.
"""

import asyncio
import json
import sys
import time
from typing import Any

import numpy as np
import uvloop

from ops.bench.readers import Reader, request

DONE = b"data: [DONE]"


class TimedReader(Reader):
    """Knows when each piece came."""

    def __init__(self, request: bytes) -> None:
        super().__init__(request)
        self.times_s: list[float] = []

    def data_received(self, data: bytes) -> None:
        """Text."""
        self.times_s.append(time.monotonic())
        super().data_received(data)


async def read(order: dict[str, Any]) -> str:
    """Carry out an order."""
    loop = asyncio.get_running_loop()
    seeded = {"seed": order["seed"]} if "seed" in order else {}
    asked = request(order["key"], max_tokens=order["tokens"], ignore_eos=True, **seeded)
    readers: list[TimedReader] = []
    begun = time.monotonic()
    for _ in range(order["streams"]):
        _, reader = await loop.create_connection(lambda: TimedReader(asked), "127.0.0.1", order["port"])
        readers.append(reader)
    await asyncio.gather(*(reader.ended for reader in readers))
    took_s = time.monotonic() - begun
    for index, reader in enumerate(readers):
        said = b"".join(reader.pieces)
        if DONE not in said or b'"finish_reason":"length"' not in said:
            return f"wrong stream {index} ended with {said[-200:]!r}"
    gaps_s = np.concatenate([np.diff(reader.times_s) for reader in readers])
    return f"done {took_s} {np.percentile(gaps_s, 99)}"


def main() -> None:
    """Entry point of the process."""
    for line in sys.stdin:
        print(uvloop.run(read(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
