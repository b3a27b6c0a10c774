"""The engine on a GPU, against what the GPU can do and against transformers (`fairlead bench engine --device cuda`).

An 8B model of random bfloat16 weights, 128 prompt tokens and 1024 outputs. The reference of decodes is the roofline:
bytes of weights and KV that a step must read, by the copy bandwidth measured in the same round. That of prefills is the
rate of a large matrix product. transformers' continuous batching is tuned first, by trying each of its ways once.
"""

import argparse
import copy
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile

from engine.interface import EngineSettings, GraphSettings
from engine.runner import TorchEngine
from ops.bench.device_limits import copy_bandwidth, matmul_rate
from ops.bench.engine_driver import Batch, Timed, boundary_gaps, random_prompts
from ops.bench.harness import Paired, Row, UnmeasurableError, at_least, at_most, interleave
from ops.bench.random_model import QWEN3_8B, TINY, Sizes, describe, our_engine, sizes, their_model
from ops.bench.transformers_peer import Peer

ROOFLINES = {1: (0.60, 0.75), 64: (0.55, 0.70), 256: (0.50, 0.65)}
"""Rows -> least and hoped-for share of the roofline."""

PREFILLS = 8
"""Steps in a row, each with one prompt."""


class Workload(NamedTuple):
    """What is run."""

    geometry: dict[str, Any]
    rows: tuple[int, ...]
    peer_rows: int
    num_prompt: int
    num_outputs: int
    budget: int
    """Tokens of a prefill step."""
    checked_rows: int
    """Sequences whose tokens are compared one position after the other."""
    copied_bytes: int
    matrix_size: int


FULL = Workload(QWEN3_8B, (1, 64, 256), 64, 128, 1024, 2048, 8, 2 * 2**30, 8192)
SMOKE = Workload(TINY, (1, 4), 4, 12, 6, 16, 2, 2**20, 128)


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure on `arguments.device`; with `arguments.smoke`, a tiny model that measures nothing.

    Raises:
        UnmeasurableError: there is no such device.
    """
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnmeasurableError(
            "--device cuda: this machine has no CUDA device that torch can use; nothing was measured"
        )
    work = FULL
    if arguments.smoke:
        # What a GPU runs in float32 is not what is measured.
        dtype = "float32" if device.type == "cpu" else "bfloat16"
        work = SMOKE._replace(geometry={**SMOKE.geometry, "torch_dtype": dtype})
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as folder:
        bench = Bench(Path(folder), work, device, arguments.rounds)
        # transformers first: where it does not run, that is said before minutes are spent.
        return [*bench.peer(), *bench.decodes(), bench.prefill(), *bench.overlap()]


class Bench:
    """One engine, one workload."""

    def __init__(self, folder: Path, work: Workload, device: torch.device, rounds: int) -> None:
        self._folder, self._work, self._device, self._rounds = folder, work, device, rounds
        self._config = describe(folder, work.geometry)
        self._dtype: torch.dtype = getattr(torch, work.geometry["torch_dtype"])
        self._sizes: Sizes = sizes(self._config, self._dtype.itemsize)
        self._length = work.num_prompt + work.num_outputs
        self._engine = self._load()

    def _load(self) -> TorchEngine:
        longest = max(self._length, self._work.budget)
        rounded = -(-(longest + 1) // 256) * 256  # whole blocks of any backend
        settings = EngineSettings(
            device=self._device.type,
            dtype=self._work.geometry["torch_dtype"],
            max_sequence_tokens=min(rounded, self._config.max_positions),
            kv_pool_tokens=max(max(self._work.rows) * (-(-self._length // 256) * 256), PREFILLS * rounded),
            graphs=GraphSettings(prepared_tokens=self._length),
        )
        return our_engine(self._folder, self._config, settings)

    def _prompts(self, num_rows: int) -> NDArray[np.int32]:
        return random_prompts(num_rows, self._work.num_prompt, self._config.vocabulary_size, num_rows)

    def _generate(self, num_rows: int, in_flight: int = 2) -> Timed:
        batch = Batch(self._engine, self._prompts(num_rows), self._work.num_outputs, in_flight)
        return batch.run(self._work.num_outputs, self._work.budget)

    def decodes(self) -> list[Row]:
        """Output tokens in a second of steps that only decode, against the roofline."""
        rows = []
        for num_rows in self._work.rows:
            paired = interleave(
                lambda num_rows=num_rows: num_rows * (self._work.num_outputs - 1) / self._generate(num_rows).decode_s,
                lambda num_rows=num_rows: num_rows / self._roofline_s(num_rows),
                rounds=self._rounds,
            )
            must, stretch = ROOFLINES.get(num_rows, (0.0, 0.0))
            rows.append(
                at_least(
                    f"decode, {num_rows} rows, against the roofline", "tokens/s", paired, must=must, stretch=stretch
                )
            )
        return rows

    def _roofline_s(self, num_rows: int) -> float:
        """Of a step, at the mean context."""
        context = self._work.num_prompt + self._work.num_outputs / 2
        num_bytes = self._sizes.weight_bytes + num_rows * context * self._sizes.kv_bytes
        return num_bytes / copy_bandwidth(self._work.copied_bytes, self._device)

    def prefill(self) -> Row:
        """Operations in a second of a prompt that fills a step, against those of a large product."""
        budget, rows = self._work.budget, PREFILLS
        prompts = random_prompts(rows, budget, self._config.vocabulary_size, 1)
        operations = budget * self._sizes.token_operations + budget**2 / 2 * self._sizes.context_operations
        paired = interleave(
            lambda: rows * operations / Batch(self._engine, prompts, 1).run(1, budget).prefill_s / 1e12,
            lambda: matmul_rate(self._work.matrix_size, self._dtype, self._device) / 1e12,
            rounds=self._rounds,
        )
        return at_least(f"prefill, {budget} tokens, against matmul", "TFLOP/s", paired, must=0.5, stretch=0.65)

    def overlap(self) -> list[Row]:
        """Two steps in flight against one; and on CUDA how long the device does nothing between two steps."""
        num_rows = self._work.peer_rows
        paired = interleave(
            lambda: num_rows / self._generate(num_rows).decode_s,
            lambda: num_rows / self._generate(num_rows, in_flight=1).decode_s,
            rounds=self._rounds,
        )
        rows = [at_least("two steps in flight against one", "batches/s", paired, must=1.0, stretch=1.1)]
        if self._device.type == "cuda":
            gaps = [self._gap_us(num_rows) for _ in range(1 + self._rounds)][1:]
            ratios = tuple(gap / step for gap, step in gaps)
            idle = Paired(
                ours=statistics.median(gap for gap, _ in gaps),
                reference=statistics.median(step for _, step in gaps),
                ratio=statistics.median(ratios),
                ratios=ratios,
            )
            rows.append(at_most(f"idle between steps, {num_rows} rows", "us", idle, must=0.05, stretch=0.01))
        return rows

    def _gap_us(self, num_rows: int) -> tuple[float, float]:
        """Medians over steps of the gap after one and of the time to the next one's end, microseconds."""
        batch = Batch(self._engine, self._prompts(num_rows), self._work.num_outputs)
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            batch.run(min(64, self._work.num_outputs), self._work.budget)
        on_device = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        gaps, steps = boundary_gaps([(e.name, e.time_range.start, e.time_range.end) for e in on_device])
        # The first boundaries are those of prefill steps.
        return statistics.median(gaps[-32:]), statistics.median(steps[-32:])

    def peer(self) -> list[Row]:
        """Output tokens in a second, prefill included, against transformers; and how far the tokens agree."""
        num_rows, num_outputs = self._work.peer_rows, self._work.num_outputs
        prompts = self._prompts(num_rows)
        peer = Peer(their_model(self._folder, self._dtype, self._device), prompts, num_outputs, self._device)
        peer.tune()
        ours, (_, theirs) = self._generate(num_rows).outputs, peer.run(num_outputs)
        paired = interleave(
            lambda: num_rows * num_outputs / total_s(self._generate(num_rows)),
            lambda: num_rows * num_outputs / peer.run(num_outputs)[0],
            rounds=self._rounds,
        )
        peer.close()
        checked = np.concatenate((prompts, ours), 1)[: self._work.checked_rows]
        metric = f"generation, {num_rows} rows, against transformers"
        return [
            msgspec.structs.replace(
                at_least(metric, "tokens/s", paired, must=1.5, stretch=2.5), note="; ".join(peer.notes())
            ),
            # In bfloat16 a near tie sends two right engines different ways: nothing is asked of this one.
            _share("greedy tokens as transformers'", leading_share(ours, theirs), 1.0, must=0.0),
            self._agreement(checked, peer.model),
        ]

    def _agreement(self, sequences: NDArray[np.int32], model: Any) -> Row:
        """The likeliest tokens of ours and of transformers' own, each against transformers' in float32.

        Both read the same sequences, so that no early difference counts more than once.
        """
        model.set_attn_implementation("sdpa")  # flash attention has no float32
        tokens = torch.from_numpy(sequences).to(self._device, torch.int64)
        batch = Batch(self._engine, sequences, 0)
        exact = copy.deepcopy(model).float()
        with torch.inference_mode():
            expected, theirs = (
                torch.stack([each(row[None]).logits[0].argmax(-1) for row in tokens]).cpu().numpy()
                for each in (exact, model)
            )
        agreed = [float((found == expected).mean()) for found in (batch.likeliest(), theirs)]
        return _share("likeliest tokens as float32, against theirs", *agreed, must=0.98)


def total_s(timed: Timed) -> float:
    """Prefill and decode."""
    return timed.prefill_s + timed.decode_s


def leading_share(ours: NDArray[np.int32], theirs: NDArray[np.int32]) -> float:
    """The mean share of a sequence before the first token that differs."""
    return float(np.logical_and.accumulate(ours == theirs, 1).mean())


def _share(metric: str, ours: float, reference: float, *, must: float) -> Row:
    ratio = ours / reference
    return at_least(metric, "share", Paired(ours, reference, ratio, (ratio, ratio)), must=must, stretch=1.0)
