"""A thousand bad clients beside 32 normal ones (`fairlead bench bad-clients`).

All four services as they are shipped, with a paced engine (20 ms a step), so that a gap is the services' doing. The
bad ones (`ops.bench.bad_crowd`) and the normal ones each have a process of their own. The figure of a round is the 99th
percentile of the gaps between pieces of text at the normal readers, with the bad ones there and without, in turn;
whoever was cut off comes again. In the end a thousand come once more and stay, none again: the gateway must get rid of
them by itself. Its sockets and the memory of all services are looked at before the first round and then.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine.interface import EngineSettings
from ops.bench.deployed import start
from ops.bench.harness import Paired, Row, at_most, interleave
from ops.bench.paced_load import secret, write_tenants
from ops.bench.processes import KEEPER, num_descriptors, pids, rss_mib
from services.settings import REPOSITORY, Deployment, HttpSettings, MetricsSettings, TelemetrySettings

COUNTS = {"silent": 300, "half_head": 250, "half_body": 250, "slow": 100, "vanishing": 100}
NUM_NORMAL = 32
NUM_TOKENS = 300
SEED = 21
"""With it each token completes a character (`ops.bench.slow_reader`)."""
STEP_S = 0.02
NORMAL, BAD = "acme", "globex"
LONGEST_S = 200.0
"""Until bad clients that stay are to be gone: a slow one first fills all buffers on its way, then it is cut off."""
WARM_S = 6.0
"""After the first round: files that are written from time to time are open by then."""
LOOK_S = 0.5


class House:
    """The services, and the normal readers.

    Args:
        stack: what ends with the house.
        counts: of the bad clients, by kind.
    """

    def __init__(self, stack: contextlib.ExitStack, counts: dict[str, int], *, num_tokens: int = NUM_TOKENS) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fairlead-bench-")))
        write_tenants(folder / "data")
        none = MetricsSettings(gateway=None, admission=None, scheduler=None, executor=None)
        deployment = Deployment(
            data=str(folder / "data"),
            http=HttpSettings(port=0),
            engine=EngineSettings(kind="paced", paced_step_s=STEP_S),
            telemetry=TelemetrySettings(metrics=none),
        )
        self._port, _ = start(deployment, folder, stack)
        self._counts = counts
        self._num_tokens = num_tokens
        self.pids = pids(str(folder))
        self._readers = stack.enter_context(_process("ops.bench.token_readers"))

    def p99_ms(self) -> float:
        """One round of the normal readers.

        Raises:
            RuntimeError: a stream was cut short.
        """
        order = {"port": self._port, "key": secret(NORMAL), "streams": NUM_NORMAL, "tokens": self._num_tokens}
        said = _ask(self._readers, order | {"seed": SEED})
        if not said.startswith("done"):
            raise RuntimeError(f"this run is void: {said}")
        return float(said.split()[2]) * 1e3

    @contextlib.contextmanager
    def crowd(self, *, comes_again: bool) -> Iterator[None]:
        """The bad clients are there."""
        with _process("ops.bench.bad_crowd") as crowd:
            order = {"port": self._port, "key": secret(BAD), "counts": self._counts, "comes_again": comes_again}
            if _ask(crowd, order) != "ready":
                raise RuntimeError("this run is void: the bad clients did not come")
            yield

    def num_descriptors(self) -> int:
        """Of the gateway."""
        return num_descriptors(self.pids["gateway"])

    def rss_mib(self) -> float:
        """Of all that serve."""
        return sum(rss_mib(pid) for name, pid in self.pids.items() if name != KEEPER)

    def settle(self, num_descriptors: int, within_s: float) -> float:
        """Wait until the gateway has no more than so many descriptors: the seconds that took."""
        began_at_s = time.monotonic()
        while self.num_descriptors() > num_descriptors and time.monotonic() - began_at_s < within_s:
            time.sleep(LOOK_S)
        return time.monotonic() - began_at_s


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure."""
    with contextlib.ExitStack() as stack:
        house = House(stack, COUNTS)
        house.p99_ms()
        time.sleep(WARM_S)
        before, before_mib = house.num_descriptors(), house.rss_mib()

        def beside() -> float:
            with house.crowd(comes_again=True):
                return house.p99_ms()

        gaps = interleave(beside, house.p99_ms, rounds=arguments.rounds)
        house.settle(before, LONGEST_S)
        held, held_mib = 0, 0.0
        with house.crowd(comes_again=False):
            held, held_mib = house.num_descriptors(), house.rss_mib()
            rid_s = house.settle(before, LONGEST_S)
            left = house.num_descriptors()
        after_mib = house.rss_mib()
    crowd = ", ".join(f"{count} {kind}" for kind, count in COUNTS.items())
    rows = [
        (
            at_most("p99_tbt_of_32_beside_1000_bad_clients", "ms", gaps, must=1.5, stretch=1.1),
            crowd,
        ),
        (
            at_most("descriptors_after_they_came_and_stayed", "open", _single(left, before), must=1.0, stretch=1.0),
            f"{held} with all of them there; as few as before after {rid_s:.0f} s, and none of them had left by itself",
        ),
        (
            at_most("memory_after_they_came_and_stayed", "MiB", _single(after_mib, before_mib), must=1.2, stretch=1.05),
            f"{held_mib:.0f} MiB with all of them there",
        ),
    ]
    return [msgspec.structs.replace(row, note=note) for row, note in rows]


@contextlib.contextmanager
def _process(module: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-m", module], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            if process.stdin is not None:
                process.stdin.close()


def _ask(process: "subprocess.Popen[str]", order: dict[str, Any]) -> str:
    assert process.stdin is not None  # noqa: S101  it was asked for
    assert process.stdout is not None  # noqa: S101
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def _single(ours: float, reference: float) -> Paired:
    return Paired(ours, reference, ours / reference, (ours / reference,) * 2)
