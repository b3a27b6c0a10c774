"""How long a step takes on a device that is not here: the simulator's ground truth.

Owns published and derived step-time constants (scheduling specification, section 2; fairness specification, 12.3).
Knows token counts; does not know sequences, policies or the step-time estimate a policy makes for itself.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from math import ceil
from typing import NamedTuple, Protocol

from policies.simulation.step_shape import StepShape


class StepTime(Protocol):
    """A device's step time."""

    def step_s(self, shape: StepShape) -> float:
        """Seconds that the step takes; a step holds at least one token."""


class Delays(Protocol):
    """What lies around a step of a live device, asked once for each step."""

    def launch_s(self) -> float:
        """From a plan to its step's begin on a device with nothing else to do."""

    def relaunch_s(self) -> float:
        """From a step's end to the next one's begin, its plan being there."""

    def return_s(self) -> float:
        """From a step's end until the scheduler hears of it."""


class NoDelays:
    """Plans and results take no time."""

    def launch_s(self) -> float:
        """None."""
        return 0.0

    def relaunch_s(self) -> float:
        """None."""
        return 0.0

    def return_s(self) -> float:
        """None."""
        return 0.0


NO_DELAYS = NoDelays()


class Tile(NamedTuple):
    """`ceil(n / tile)` tile columns of linear layers, per-token operators, and attention (RAD, equation 7).

    The paper's attention terms are not public; ours: a chunk of q tokens behind k costs `pair_s * q * (k + q / 2)`, a
    decode that reads k tokens `context_token_s * k`.
    """

    tile_tokens: int
    column_s: float
    token_s: float
    pair_s: float = 0.0
    context_token_s: float = 0.0

    def step_s(self, shape: StepShape) -> float:
        """Seconds of a step."""
        linear_s = ceil(shape.num_tokens / self.tile_tokens) * self.column_s + shape.num_tokens * self.token_s
        return linear_s + self.pair_s * shape.prefill_pairs + self.context_token_s * shape.context_tokens


class FloorLinear(NamedTuple):
    """A weight-read floor, then linear in tokens; decode attention reads KV."""

    floor_s: float
    fixed_s: float
    token_s: float
    kv_token_s: float

    def step_s(self, shape: StepShape) -> float:
        """Seconds of a step."""
        linear = self.fixed_s + self.token_s * shape.num_tokens
        return max(self.floor_s, linear) + self.kv_token_s * shape.context_tokens


class Table(NamedTuple):
    """Measured step times, interpolated; past the last point a constant slope. Decode attention reads KV."""

    tokens: tuple[int, ...]
    """Ascending."""
    seconds: tuple[float, ...]
    token_s: float
    """Slope past the last point."""
    kv_token_s: float

    def step_s(self, shape: StepShape) -> float:
        """Seconds of a step."""
        return self._linear_s(shape.num_tokens) + self.kv_token_s * shape.context_tokens

    def _linear_s(self, num_tokens: int) -> float:
        right = bisect_right(self.tokens, num_tokens)
        if right == 0:
            return self.seconds[0]
        left = right - 1
        beyond = num_tokens - self.tokens[left]
        if right == len(self.tokens):
            return self.seconds[left] + self.token_s * beyond
        slope = (self.seconds[right] - self.seconds[left]) / (self.tokens[right] - self.tokens[left])
        return self.seconds[left] + slope * beyond


class Layers(NamedTuple):
    """Measured times of all layers without attention, by number of tokens; one between two points costs what the next
    larger does, one past the last in proportion. Attention as in `Tile`.
    """

    tokens: tuple[int, ...]
    """Ascending."""
    seconds: tuple[float, ...]
    kv_token_s: float
    pair_s: float

    def step_s(self, shape: StepShape) -> float:
        """Seconds of a step."""
        right = bisect_left(self.tokens, shape.num_tokens)
        if right == len(self.tokens):
            linear_s = self.seconds[-1] * shape.num_tokens / self.tokens[-1]
        else:
            linear_s = self.seconds[right]
        return linear_s + self.pair_s * shape.prefill_pairs + self.kv_token_s * shape.context_tokens


class BatchContext(NamedTuple):
    """A decode part of fixed, per-sequence and per-context-token time, and prefill priced per token."""

    decode_fixed_s: float
    decode_s: float
    context_token_s: float
    prefill_fixed_s: float
    prefill_token_s: float

    def step_s(self, shape: StepShape) -> float:
        """Seconds of a step."""
        seconds = 0.0
        if shape.decodes:
            seconds += self.decode_fixed_s + self.decode_s * shape.decodes + self.context_token_s * shape.context_tokens
        if shape.prefill_tokens:
            seconds += self.prefill_fixed_s + self.prefill_token_s * shape.prefill_tokens
        return seconds


class Device(NamedTuple):
    """A device with a model on it."""

    description: str
    num_blocks: int
    block_tokens: int
    max_sequence_tokens: int
    step_time: StepTime
    delays: Delays = NO_DELAYS


ADA_KV_TOKEN_S = 1.365e-7
"""131,072 bytes of KV per token of Mistral-7B at 960 GB/s."""
A10G_OVERHEAD = 1.083
"""Engine overhead: the one free parameter of the fit."""


def ada_device(step_time: StepTime) -> Device:
    """Pool and context of Mistral-7B on an RTX 6000 Ada, with this step time."""
    return Device("Mistral-7B fp16 on an RTX 6000 Ada, 48 GB", 14_733, 16, 8192, step_time)


def _ada_table(efficiency: float) -> Device:
    seconds = (0.0215, 0.0226, 0.0241, 0.0299, 0.0439, 0.0530, 0.0759, 0.1008)
    return ada_device(Table((1, 64, 128, 256, 384, 512, 768, 1024), seconds, 0.0932e-3, ADA_KV_TOKEN_S / efficiency))


def _ada_floor_linear(efficiency: float) -> Device:
    return ada_device(FloorLinear(0.0215, 0.0053, 0.0932e-3, ADA_KV_TOKEN_S / efficiency))


def a10g_device(step_time: StepTime) -> Device:
    """Pool and context of Llama-2-7B on an A10G, with this step time."""
    return Device("Llama-2-7B on an A10G, 24 GB", 625, 16, 4096, step_time)


def _a10g(efficiency: float) -> Device:
    scale = A10G_OVERHEAD
    step_time = BatchContext(scale * 0.01816, scale * 2.161e-4, scale * 1.891e-6 / efficiency, 0.010, scale * 2.149e-4)
    return a10g_device(step_time)


def _toy(_efficiency: float) -> Device:
    return Device("tiles of 128 tokens, no attention (the theory's machine)", 12_288, 16, 1536, Tile(128, 4e-3, 5e-6))


DEVICES: dict[str, Callable[[float], Device]] = {
    "rtx6000ada-mistral7b": _ada_table,
    "rtx6000ada-mistral7b-linear": _ada_floor_linear,
    "a10g-llama2-7b": _a10g,
    "toy-tile": _toy,
}
"""By name; each takes the efficiency of KV reads, a share of the memory bandwidth above 0 (1: all of it)."""
