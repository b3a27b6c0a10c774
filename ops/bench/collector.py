"""A collector in trouble for a minute: what readers see of it, how much memory it costs and what is counted as lost.

The four services with a paced engine, every token recorded and every request's tokens wanted as spans, against the same
without a collector. Readers have a clock of their own.
"""

import argparse
import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ops.bench.harness import Paired, Row, at_most
from ops.bench.tracing import KEEPER, POLICY, House, Load, Round

LOAD = Load(0.04, 250)
"""Ten seconds of 256 streams at 6,400 tokens/s,"""
ROUNDS = 6
"""a minute in all."""
ALL_SPANS = b"tracing: {spans_for: {otherwise: 1}}\n"
HANGS_S = 120.0


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure, one minute each."""
    del arguments  # a minute is a round
    with _house("") as house:
        calm, _, _ = _minute(house)
    rows = []
    for trouble, answer in (("down", None), ("slow", _hang), ("wrong", _babble)):
        with _collector(answer) as endpoint, _house(endpoint) as house:
            seen, first_mib, last_mib = _minute(house)
        note = f"{seen.num_tokens} tokens, {seen.num_recorded} recorded; {seen.num_dropped} spans and points given up"
        ours, reference = seen.p99_gap_s * 1e3, calm.p99_gap_s * 1e3
        rows.append(_row(f"P99 between tokens, collector {trouble}", "ms", ours, reference, note))
        note = "the most in the last ten seconds of the minute, against the most in the first"
        rows.append(_row(f"memory of gateway and keeper, collector {trouble}", "MiB", last_mib, first_mib, note))
    return rows


def _minute(house: House) -> tuple[Round, float, float]:
    """All rounds as one, with their median P99, and the most memory of gateway and keeper in the first and the last."""
    rounds, most_mib = [], []
    for _ in range(ROUNDS):
        with _watched(house) as most:
            rounds.append(house.round())
        most_mib.append(max(most))
    seen = Round(
        took_s=sum(one.took_s for one in rounds),
        serving_cpu_s=sum(one.serving_cpu_s for one in rounds),
        keeper_cpu_s=sum(one.keeper_cpu_s for one in rounds),
        num_tokens=sum(one.num_tokens for one in rounds),
        num_recorded=sum(one.num_recorded for one in rounds),
        num_dropped=sum(one.num_dropped for one in rounds),
        p99_gap_s=statistics.median(one.p99_gap_s for one in rounds),
    )
    return seen, most_mib[0], most_mib[-1]


@contextlib.contextmanager
def _watched(house: House) -> Iterator[list[float]]:
    """Memory of gateway and keeper, MiB, twice a second."""
    seen: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            seen.append(sum(_rss_mib(house.pids[name]) for name in ("gateway", KEEPER)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


@contextlib.contextmanager
def _house(endpoint: str) -> Iterator[House]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fairlead-collector-")))
        policy = folder / "policy.yaml"
        policy.write_bytes(POLICY.read_bytes() + ALL_SPANS)
        yield House(LOAD, tokens=True, stack=stack, endpoint=endpoint, policy=policy)


@contextlib.contextmanager
def _collector(answer: Callable[[BaseHTTPRequestHandler], None] | None) -> Iterator[str]:
    """Address of a collector that answers like this; None: nobody listens there."""

    class Handler(BaseHTTPRequestHandler):
        """One export."""

        def do_POST(self) -> None:
            """Be of no use."""
            assert answer is not None  # noqa: S101  else nobody listens
            answer(self)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if answer is None:
        server.server_close()
        yield f"http://127.0.0.1:{server.server_port}"
        return
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _hang(handler: BaseHTTPRequestHandler) -> None:
    del handler
    time.sleep(HANGS_S)


def _babble(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\0\1\2 no HTTP at all\r\n\r\n")


def _rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _row(metric: str, unit: str, ours: float, reference: float, note: str) -> Row:
    ratio = ours / reference
    paired = Paired(ours, reference, ratio, (ratio, ratio))
    row = at_most(metric, unit, paired, must=1.5, stretch=1.1)
    return Row(**{**{name: getattr(row, name) for name in row.__struct_fields__}, "note": note})
