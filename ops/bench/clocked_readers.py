"""Readers with a clock of their own, in a process of their own: `python -m ops.bench.clocked_readers`.

Takes one order a line on stdin, a JSON object: {port, key, seeds, tokens}. Opens a stream for each seed, reads them to
the end and answers with a JSON object: {realtime, streams: [{id, begun_s, times_s}]}, the times when each piece of text
was there. It runs at real-time priority where it may, so that its clock tells when a piece came and not when others
were done.
"""

import json
import os
import selectors
import socket
import sys
import time
from typing import Any

from ops.bench.readers import END, request

READ_BYTES = 2**16


class Stream:
    """One stream; looked at only when all is over."""

    def __init__(self, port: int, asked: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.pieces: list[tuple[float, bytes]] = []
        self.begun_s = time.monotonic()
        self.socket.sendall(asked)

    def read(self) -> bool:
        """Take what is there; whether more is expected."""
        data = self.socket.recv(READ_BYTES)
        self.pieces.append((time.monotonic(), data))
        return bool(data) and not data.endswith(END)

    def told(self) -> dict[str, Any]:
        """When each piece of text came; several that came at once count each."""
        head = self.pieces[0][1].split(b"\r\n\r\n", 1)[0].decode()
        names = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
        times_s = [at_s for at_s, data in self.pieces for line in data.split(b"\n") if _has_text(line)]
        return {
            "id": {name.lower(): value for name, value in names.items()}["x-request-id"],
            "begun_s": self.begun_s,
            "times_s": times_s,
        }


def _has_text(line: bytes) -> bool:
    if not line.startswith(b"data: {"):
        return False
    choices = json.loads(line[6:])["choices"]
    return bool(choices and choices[0]["delta"].get("content"))


def read(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Carry out an order."""
    selector = selectors.DefaultSelector()
    streams = [
        Stream(order["port"], request(order["key"], max_tokens=order["tokens"], ignore_eos=True, seed=seed))
        for seed in order["seeds"]
    ]
    for stream in streams:
        selector.register(stream.socket, selectors.EVENT_READ, stream)
    while selector.get_map():
        for key, _ in selector.select():
            if not key.data.read():
                selector.unregister(key.fileobj)
    return [stream.told() for stream in streams]


def main() -> None:
    """Entry point of the process."""
    realtime = True
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        realtime = False
    for line in sys.stdin:
        print(json.dumps({"realtime": realtime, "streams": read(json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
