"""A step model fitted to what an executor did: its form, its file, and its noise drawn again in a replay.

A step's time is a sum of terms: a curve over the tokens that pass the linear layers (the weights are read whatever
their number, then the work grows), one over the decodes, and the keys and values that attention reads and multiplies.
What those leave of the measured times is kept as it was found, as ratios. So are the delays around a step: a device
waits for its next plan, and a scheduler for the result.

Owns no regression (fitting.py) and knows no clock.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct

from policies.simulation.executor_model import Device
from policies.simulation.step_shape import StepShape

DECODES, PROMPTS = "decodes", "prompts"
"""Kinds of steps: with output tokens alone, and with tokens of a prompt."""
NUM_DRAWN = 4096
"""Random numbers made at a time."""


class FittedModelError(Exception):
    """A file that is no fitted step model; the sentence says why."""


class Curve(Struct, frozen=True):
    """Seconds over a count: straight between knots, and past the last as from the first to it on the whole.

    Work comes in tiles: the stretch that happens to be the last may be all step and no tread, and a replay that goes
    past it would slow down, fall behind, and go further past it.
    """

    knots: tuple[int, ...]
    """At least two, ascending."""
    seconds: tuple[float, ...]
    """Parallel to `knots`."""

    def __post_init__(self) -> None:
        """Raises `ValueError` unless it is a curve."""
        if len(self.knots) < 2 or len(self.knots) != len(self.seconds) or list(self.knots) != sorted(set(self.knots)):
            raise ValueError("a curve needs two or more ascending knots and as many seconds")

    @classmethod
    def rising(cls, knots: tuple[int, ...], start_s: float, rises_s: Sequence[float]) -> "Curve":
        """From the value at the first knot and what it rises by from each knot to the next."""
        return cls(knots, tuple(accumulate(rises_s, initial=start_s)))

    def at(self, count: int) -> float:
        """Seconds; below the first knot as there."""
        knots, seconds = self.knots, self.seconds
        right = bisect_right(knots, count)
        if right == 0:
            return seconds[0]
        left, right = (right - 1, right) if right < len(knots) else (0, len(knots) - 1)
        return seconds[left] + (count - knots[left]) * (seconds[right] - seconds[left]) / (knots[right] - knots[left])


class Noise(Struct, frozen=True):
    """Measured over fitted time of one kind of step."""

    mean: float = 1.0
    quantiles: tuple[float, ...] = (1.0,)
    """Evenly spaced, from the least ratio to the largest."""


class Delays(Struct, frozen=True):
    """What lies around a step; each as evenly spaced quantiles in seconds."""

    launch_s: tuple[float, ...] = (0.0,)
    """From a plan to its step's begin on a device with nothing else to do."""
    relaunch_s: tuple[float, ...] = (0.0,)
    """From a step's end to the next one's begin, its plan being there."""
    return_s: tuple[float, ...] = (0.0,)
    """From a step's end until the scheduler hears of it."""


class Bucket(Struct, frozen=True):
    """How well steps of a size are explained."""

    kind: str
    num_tokens_from: int
    num_steps: int
    bias: float
    """Median of `measured / fitted - 1`."""
    error: float
    """Median of its absolute value."""


class FittedModel(Struct, frozen=True, kw_only=True):
    """A fitted model; as a `StepTime` it gives the expected time. `drawn` gives times that scatter as measured."""

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    tokens: Curve
    decodes: Curve
    context_token_s: float
    prefill_s: float
    """For each sequence with prompt tokens."""
    prefill_pair_s: float
    prefill_step_s: float
    """Once, if there are prompt tokens."""
    mixed_step_s: float
    """Once, if there are prompt tokens and decodes."""
    noise: dict[str, Noise]
    delays: Delays
    num_steps: int
    """That it was fitted to."""
    error: float
    """Median of `|measured / fitted - 1|` over them."""
    buckets: list[Bucket]

    def __post_init__(self) -> None:
        """Raises `ValueError` unless both kinds of steps have their noise."""
        if set(self.noise) != {DECODES, PROMPTS}:
            raise ValueError(f"noise is of `{DECODES}` and of `{PROMPTS}`")

    def fitted_s(self, shape: StepShape) -> float:
        """Seconds that the terms make of a step: its typical time."""
        seconds = self.tokens.at(shape.num_tokens) + self.decodes.at(shape.decodes)
        seconds += self.context_token_s * shape.context_tokens
        if shape.prefill_tokens:
            seconds += self.prefill_step_s + self.prefill_s * shape.num_prefills
            seconds += self.prefill_pair_s * shape.prefill_pairs
            if shape.decodes:
                seconds += self.mixed_step_s
        return seconds

    def step_s(self, shape: StepShape) -> float:
        """Seconds that a step takes on average."""
        return self.fitted_s(shape) * self.noise[kind_of(shape)].mean

    def drawn(self, seed: int) -> "DrawnModel":
        """The model with its noise and its delays, the same for the same seed."""
        return DrawnModel(self, seed)


class DrawnModel:
    """One history of a fitted model: a `StepTime` and the `Delays` of a device."""

    def __init__(self, model: FittedModel, seed: int) -> None:
        self._model = model
        generator = np.random.default_rng(seed)
        self._ratios = {name: _Draws(noise.quantiles, generator) for name, noise in model.noise.items()}
        delays = model.delays
        self._launches = _Draws(delays.launch_s, generator)
        self._relaunches = _Draws(delays.relaunch_s, generator)
        self._returns = _Draws(delays.return_s, generator)

    def step_s(self, shape: StepShape) -> float:
        """Seconds of the next step."""
        return self._model.fitted_s(shape) * self._ratios[kind_of(shape)].next()

    def launch_s(self) -> float:
        """As in `Delays`, of the next step."""
        return self._launches.next()

    def relaunch_s(self) -> float:
        """As in `Delays`, of the next step."""
        return self._relaunches.next()

    def return_s(self) -> float:
        """As in `Delays`, of the next step."""
        return self._returns.next()


class _Draws:
    """Random values of a distribution given by quantiles."""

    def __init__(self, quantiles: Sequence[float], generator: np.random.Generator) -> None:
        self._quantiles = quantiles
        self._generator = generator
        self._made: list[float] = []

    def next(self) -> float:
        if not self._made:
            at = self._generator.random(NUM_DRAWN)
            self._made = np.interp(at, np.linspace(0, 1, len(self._quantiles)), self._quantiles).tolist()
        return self._made.pop()


def kind_of(shape: StepShape) -> str:
    """The kind of a step, as noise tells them apart."""
    return PROMPTS if shape.prefill_tokens else DECODES


class FittedDevice(Struct, frozen=True, kw_only=True):
    """A live executor as a replay needs it: what `fairlead replay --executor fitted:FILE` reads."""

    description: str
    num_blocks: int
    block_tokens: int
    max_sequence_tokens: int
    max_steps_in_flight: int = 2
    model: FittedModel

    def device(self, seed: int) -> Device:
        """The device with one history of the model's noise and delays."""
        drawn = self.model.drawn(seed)
        return Device(
            self.description, self.num_blocks, self.block_tokens, self.max_sequence_tokens, drawn, delays=drawn
        )


def encode_device(device: FittedDevice) -> bytes:
    """JSON, as `decode_device` reads it."""
    return msgspec.json.format(msgspec.json.encode(device), indent=1) + b"\n"


def decode_device(text: bytes, file: str) -> FittedDevice:
    """A fitted device from its JSON.

    Raises:
        FittedModelError: it is none, or of another version.
    """
    try:
        return msgspec.json.decode(text, type=FittedDevice)
    except msgspec.MsgspecError as error:
        raise FittedModelError(f"{file}: is no fitted executor of this version: {error}") from error
