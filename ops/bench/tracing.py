"""What it costs to record every token's way: the four services with a paced engine, with tracing and without, in turn.

CPU is what the processes ran from the first request to the last token, to the nanosecond, divided by the tokens. What
is called exporter is the keeper, whose CPU counts where it says so. The reference for a token's cost is one SDK span a
token, made, ended and encoded as OTLP.
"""

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from engine.interface import EngineSettings
from ops.bench import deployed
from ops.bench.harness import Paired, Row, at_least, at_most, interleave, progress
from ops.bench.processes import KEEPER, cpu_s, pids
from services.settings import REPOSITORY, Deployment, HttpSettings, MetricsSettings, TelemetrySettings
from services.telemetry.stamps import TOKEN_PARTS

NUM_STREAMS = 256
SERVING = ("gateway", "admission", "scheduler", "executor")
SPANS = 20_000
ATTRIBUTES: dict[str, str | int | float] = {"fairlead.token.index": 7, "fairlead.token.cause": "pipeline"} | {
    f"fairlead.token.{part}_s": 0.001 for part in TOKEN_PARTS
}
POLICY = REPOSITORY / "policies" / "fairlead.yaml"


class Load(NamedTuple):
    """Of one round."""

    step_s: float
    """Pace of the engine."""
    tokens: int
    """For each stream."""


PACED = Load(0.04, 250)
"""6,400 tokens/s."""
FAST = Load(0.0125, 400)
"""20,480 tokens/s."""
SATURATED = Load(0.003, 300)
"""Up to 85,000 tokens/s, more than the services can. Not without a pace: steps that take no time break up into groups
of 15 to 35 tokens, by chance, and the CPU of a token, much of which is its share of a step's, follows that number.
"""
LAST_RECORDS_S, LAST_BATCH_S = 0.1, 1.0
"""Until the gateway has written what it has of a round, and the keeper has looked at it. The second is the keeper's
alone: four services that do nothing for so long use a hundredth of what they use in a round.
"""
HOUSES, SATURATED_ROUNDS = 2, 4
"""Pairs of houses for each round asked for, and measured rounds of each."""


class Round(NamedTuple):
    """What one round came to."""

    took_s: float
    serving_cpu_s: float
    keeper_cpu_s: float
    num_tokens: int
    num_recorded: int
    num_dropped: int
    p99_gap_s: float
    """Between two pieces of a stream, as its reader saw it."""


class House:
    """The services with one pace, tracing or not, and their readers."""

    def __init__(
        self, load: Load, *, tokens: bool, stack: contextlib.ExitStack, endpoint: str = "", policy: Path = POLICY
    ) -> None:
        self._load = load
        self._tokens = tokens
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fairlead-tracing-")))
        metrics = MetricsSettings(gateway=0, admission=None, scheduler=None, executor=None)
        deployment = Deployment(
            data=str(folder / "data"),
            policy=str(policy),
            http=HttpSettings(port=0),
            engine=EngineSettings(kind="paced", paced_step_s=load.step_s),
            telemetry=TelemetrySettings(metrics=metrics, tokens=tokens, endpoint=endpoint),
        )
        self.port, self.key = deployed.start(deployment, folder, stack)
        self.pids = pids(str(folder))
        self._metrics = _metrics_port(self.pids["gateway"]) if tokens else 0
        self._readers = subprocess.Popen(
            [sys.executable, "-m", "ops.bench.token_readers"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(self._readers.wait)
        stack.callback(self._readers.stdin.close)  # type: ignore[union-attr]  # it was asked for

    def round(self) -> Round:
        """One round.

        Raises:
            RuntimeError: a stream was cut short.
        """
        recorded = self._recorded()  # a scrape costs the gateway more than recording does: outside of what is measured
        before = self._cpu()
        order = {"port": self.port, "key": self.key, "streams": NUM_STREAMS, "tokens": self._load.tokens}
        assert self._readers.stdin is not None  # noqa: S101  it was asked for
        assert self._readers.stdout is not None  # noqa: S101
        self._readers.stdin.write(json.dumps(order) + "\n")
        self._readers.stdin.flush()
        said = self._readers.stdout.readline().strip()
        if not said.startswith("done"):
            raise RuntimeError(f"this run is void: {said}")
        time.sleep(LAST_RECORDS_S)
        after = self._cpu()
        if self._tokens:
            time.sleep(LAST_BATCH_S)
            after[KEEPER] = self._cpu()[KEEPER]
        used = {name: after[name] - before[name] for name in after}
        seen = self._recorded()
        return Round(
            took_s=float(said.split()[1]),
            serving_cpu_s=sum(used[name] for name in SERVING),
            keeper_cpu_s=used.get(KEEPER, 0.0),
            num_tokens=NUM_STREAMS * self._load.tokens,
            num_recorded=seen[0] - recorded[0],
            num_dropped=seen[1] - recorded[1],
            p99_gap_s=float(said.split()[2]),
        )

    def _cpu(self) -> dict[str, float]:
        return {name: cpu_s(pid) for name, pid in self.pids.items()}

    def _recorded(self) -> tuple[int, int]:
        """Tokens that the keeper has counted, and records that were dropped."""
        if not self._tokens:
            return 0, 0
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/metrics") as answer:
            text = answer.read().decode()

        def total(name: str) -> int:
            return int(sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)))

        recorded = total("fairlead_token_gap_seconds_count") + total("gen_ai_server_time_to_first_token_seconds_count")
        return recorded, total("fairlead_telemetry_records_dropped_total") + total("fairlead_telemetry_dropped_total")


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure."""
    rounds = arguments.rounds
    rows = []
    for name, load in (("5,000", PACED), ("20,000", FAST)):
        rows.append(_lost(name, load, rounds))
    rows += _paced(rounds)
    rows.append(_saturated(rounds))
    return rows


def _lost(name: str, load: Load, rounds: int) -> Row:
    with contextlib.ExitStack() as stack:
        house = House(load, tokens=True, stack=stack)
        seen: list[Round] = []

        def missing() -> float:
            seen.append(house.round())
            return float(abs(seen[-1].num_tokens - seen[-1].num_recorded) + seen[-1].num_dropped)

        paired = interleave(missing, lambda: 1.0, rounds=rounds)
    rate = sorted(one.num_tokens / one.took_s for one in seen)[len(seen) // 2]
    row = at_most(f"records lost at {name}/s", "tokens", paired, must=0.0, stretch=0.0)
    return _noted(row, f"{rate:,.0f} tokens/s, {NUM_STREAMS} streams")


def _paced(rounds: int) -> list[Row]:
    with contextlib.ExitStack() as stack:
        on, off = (House(PACED, tokens=tokens, stack=stack) for tokens in (True, False))
        seen: list[tuple[Round, Round]] = []

        def of_core() -> float:
            seen.append((on.round(), off.round()))
            with_, without = seen[-1]
            return (with_.serving_cpu_s - without.serving_cpu_s) / with_.took_s

        share = interleave(of_core, lambda: 1.0, rounds=rounds)
    ours = [
        (one.serving_cpu_s - other.serving_cpu_s + one.keeper_cpu_s) / one.num_tokens * 1e6 for one, other in seen[1:]
    ]
    spans = [_span_us() for _ in ours]
    ratios = tuple(span / max(one, 1e-3) for one, span in zip(ours, spans, strict=True))
    middle = len(ours) // 2
    cost = Paired(sorted(ours)[middle], sorted(spans)[middle], sorted(ratios)[middle], ratios)
    rate = seen[0][0].num_tokens / seen[0][0].took_s
    return [
        _noted(at_most("hot-path CPU", "cores", share, must=0.03, stretch=0.01), f"{rate:,.0f} tokens/s"),
        _noted(
            at_least("cost against an SDK span", "us a token", cost, must=10, stretch=50),
            "the keeper included; the ratio is the span's cost over ours",
        ),
    ]


def _saturated(rounds: int) -> Row:
    """By pairs of houses: how memory happens to lie makes one as fast as it is for as long as it lives, with tracing or
    without, and that moves a pair by more than recording does.
    """
    seen: list[tuple[list[Round], list[Round]]] = []
    for number in range(rounds * HOUSES):
        with contextlib.ExitStack() as stack:
            # Whose turn comes first changes, because the second finds the machine as the first left it.
            order = (True, False) if number % 2 else (False, True)
            houses = {tokens: House(SATURATED, tokens=tokens, stack=stack) for tokens in order}
            rounds_of: dict[bool, list[Round]] = {True: [], False: []}
            for _ in range(1 + SATURATED_ROUNDS):
                for tokens in order:
                    rounds_of[tokens].append(houses[tokens].round())
        seen.append((rounds_of[True][1:], rounds_of[False][1:]))
        progress(number + 1, rounds * HOUSES)
    figures = [(_per_token_us(on), _per_token_us(off)) for on, off in seen]
    ratios = tuple(on / off for on, off in figures)
    ours, reference = (statistics.median(column) for column in zip(*figures, strict=True))
    row = at_most(
        "CPU per token, saturated",
        "us",
        Paired(ours, reference, statistics.median(ratios), ratios),
        must=1.03,
        stretch=1.01,
    )
    throughput = statistics.median(_rate(on) / _rate(off) for on, off in seen)
    rate = statistics.median(_rate(off) for _, off in seen)
    most = NUM_STREAMS / SATURATED.step_s
    return _noted(row, f"throughput {throughput:.3f} of that without, at {rate:,.0f} tokens/s (engine: {most:,.0f})")


def _per_token_us(rounds: list[Round]) -> float:
    return sum(one.serving_cpu_s for one in rounds) / sum(one.num_tokens for one in rounds) * 1e6


def _rate(rounds: list[Round]) -> float:
    return sum(one.num_tokens for one in rounds) / sum(one.took_s for one in rounds)


class _Ended(SpanProcessor):
    """Keeps what a batch processor would queue."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        """A span is over."""
        self.spans.append(span)


def _span_us() -> float:
    """CPU of one SDK span for a token, made, ended and encoded."""
    ended = _Ended()
    provider = TracerProvider()
    provider.add_span_processor(ended)
    tracer = provider.get_tracer("fairlead")
    begun = time.process_time()
    for _ in range(SPANS):
        tracer.start_span("token", attributes=ATTRIBUTES).end()
    for start in range(0, SPANS, 512):
        encode_spans(ended.spans[start : start + 512]).SerializeToString()
    return (time.process_time() - begun) / SPANS * 1e6


def _noted(row: Row, note: str) -> Row:
    return Row(**{**{name: getattr(row, name) for name in row.__struct_fields__}, "note": note})


def _metrics_port(pid: int) -> int:
    """Where a process answers /metrics: one of the ports that it listens on."""
    sockets = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] != "0A" or f"socket:[{fields[9]}]" not in sockets:
            continue
        port = int(fields[1].split(":")[1], 16)
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            if answer.status == 200:
                return port
    raise RuntimeError("the gateway answers no /metrics")
