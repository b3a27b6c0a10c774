"""Decode passes recorded once for each shape and replayed: the host launches one graph instead of hundreds of kernels.

Owns the shapes and the memory that recorded passes read and write; knows neither sequences nor sampling. A pass is all
of the decoder but its head, so that what each graph keeps is small. Steps that hold chunks, or more rows than the
largest shape, run without.
"""

import bisect
import logging
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from engine.attention.interface import GraphAttention, Rows, SteadyDecodes, StepAttention
from engine.attention.steady import NO_ROWS, padded_blocks

log = logging.getLogger(__name__)

Pass = Callable[[Tensor, Tensor, Tensor, StepAttention], Tensor]
"""Tokens, positions and slots, int64 [rows], to hidden states [rows, hidden]."""


class Recording(NamedTuple):
    """A recorded pass: `replay` writes `output` anew from the memory that the pass read."""

    output: Tensor
    replay: Callable[[], None]


class Recorder(Protocol):
    """What records a pass."""

    def record(self, run: Callable[[], Tensor]) -> Recording:
        """Run a pass, and keep what it launched."""


class CudaRecorder:
    """CUDA graphs, which share one pool of memory: only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Tensor]) -> Recording:
        """As `Recorder.record`."""
        # Kernels are compiled and libraries make their workspaces in the first run, which a capture does not allow.
        run()
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # Other threads wait for tokens meanwhile (`engine.grammar`), which would break a capture that minds them.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = run()
        return Recording(output, graph.replay)


class _Recorded(NamedTuple):
    """One shape."""

    inputs: Tensor
    """int64 [3, rows]: tokens, positions, slots."""
    decodes: SteadyDecodes
    recording: Recording


class DecodeGraphs:
    """Recorded decode passes, by rows and blocks of a row.

    `shapes` are the numbers of rows, ascending. A pass of a new shape is recorded when first needed: a pause of some
    seconds where kernels have to be compiled, so `prepare` records what is likely beforehand.
    """

    def __init__(
        self,
        run: Pass,
        attention: GraphAttention,
        *,
        shapes: tuple[int, ...],
        block_tokens: int,
        max_blocks: int,
        device: torch.device,
        recorder: Recorder,
    ) -> None:
        self._run = run
        self._attention = attention
        self._shapes = shapes
        self._block_tokens = block_tokens
        self._max_blocks = max_blocks
        self._device = device
        self._recorder = recorder
        self._recorded: dict[tuple[int, int], _Recorded] = {}

    def __len__(self) -> int:
        return len(self._recorded)

    def num_padding(self, num_rows: int) -> int | None:
        """How many rows of nobody make the decodes of a step one of the shapes; None where there is none so large."""
        place = bisect.bisect_left(self._shapes, num_rows)
        return self._shapes[place] - num_rows if place < len(self._shapes) else None

    def decode(self, tokens: Tensor, positions: Tensor, slots: Tensor, rows: Rows) -> Tensor:
        """Hidden states [rows, hidden] of decodes that are padded to a shape already; valid until the next call."""
        recorded = self._find(len(tokens), int(rows.contexts.max()))
        for place, column in zip(recorded.inputs, (tokens, positions, slots), strict=True):
            place.copy_(column)
        recorded.decodes.fill(rows)
        recorded.recording.replay()
        return recorded.recording.output

    @torch.inference_mode()
    def prepare(self, max_context: int) -> None:
        """Record all shapes for contexts up to `max_context` tokens: the largest first, whose memory the others use."""
        began = time.monotonic()
        widths = {self._blocks(min(2**power, max_context)) for power in range(max_context.bit_length() + 1)}
        for num_blocks in sorted(widths, reverse=True):
            for num_rows in reversed(self._shapes):
                self._find(num_rows, num_blocks * self._block_tokens)
        log.info("recorded %d decode graphs in %.1f s", len(self), time.monotonic() - began)

    def _blocks(self, context: int) -> int:
        return padded_blocks(context, self._block_tokens, self._max_blocks)

    def _find(self, num_rows: int, context: int) -> _Recorded:
        shape = num_rows, self._blocks(context)
        if shape not in self._recorded:
            self._recorded[shape] = self._record(*shape)
        return self._recorded[shape]

    def _record(self, num_rows: int, num_blocks: int) -> _Recorded:
        inputs = torch.zeros((3, num_rows), dtype=torch.int64, device=self._device)
        decodes = self._attention.steady(num_rows, num_blocks)
        # Until it is filled, the pass reads and writes the scratch block alone.
        decodes.fill(NO_ROWS)
        recording = self._recorder.record(lambda: self._run(inputs[0], inputs[1], inputs[2], decodes))
        return _Recorded(inputs, decodes, recording)
