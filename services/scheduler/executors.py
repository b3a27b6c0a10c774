"""What the scheduler's shell knows of an executor: its stream, the steps it has been given, how long they took.

Owns the way from a plan to a message and from a result to its step; decides nothing.
"""

import time
from collections import deque

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.interface import EngineInfo, Logprobs, SequenceStart
from policies.commands import BoolArray, Int32Array, Int64Array, StartStep
from policies.events import StepEnded
from policies.simulation.step_shape import StepShape, shape_of
from services.transport import Stream
from services.wire_steps import StepMessage, StepResult

TOKEN_BYTES = 4
LONGEST_RETURN_S = 1.0
"""A result cannot be older than this: clocks of two machines differ by more than their messages take."""


class ResultError(Exception):
    """A result that fits no step; the sentence says why. The executor cannot be believed any more."""


class InFlight(msgspec.Struct):
    """A step that an executor was given."""

    step: int
    revision: int
    sampling: Int64Array
    """Sequences of the sampling rows, in plan order."""
    filling: Int64Array
    """Sequences of the rows that fill a block."""
    filled_to: Int32Array
    """Parallel to `filling`: their tokens in KV after the step."""
    planned_ns: int
    num_prefill_tokens: int
    num_decode_tokens: int
    shape: StepShape
    causes: NDArray[np.int8]
    """Parallel to `sampling`, or empty: as in `StepPlan`."""
    chunks: list[tuple[int, int]]
    """(sequence, tokens) of each piece of a prompt."""
    budget_use: float
    kv_use: float


class StepTokens(msgspec.Struct):
    """A step that came back."""

    executor: int
    plan: InFlight
    result: StepResult
    tokens: NDArray[np.int32]
    """Parallel to `plan.sampling`."""
    step_time_s: float
    ended_ns: int
    """On the clock of this process."""
    logprobs: Logprobs | None = None
    """Of the same rows; None: none asked for any."""
    uncertainty_ns: int = 0
    """How far the result's stamps may be off our clock."""


class Executor:
    """One connection of an executor. Another connection of the same process is another executor."""

    def __init__(self, number: int, stream: Stream, info: EngineInfo) -> None:
        self.number = number
        self.stream = stream
        self.info = info
        self._in_flight: deque[InFlight] = deque()
        self._ended_ns = 0
        """When the step before the oldest in flight ended, on the executor's clock."""

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV in the pool."""
        return self.info.num_blocks * self.info.block_tokens

    @property
    def max_sequence_tokens(self) -> int:
        """Longest sequence that the pool and the model allow."""
        return min(self.info.max_sequence_tokens, self.kv_tokens)

    def start(
        self,
        command: StartStep,
        starts: list[SequenceStart],
        *,
        token_budget: int,
        decodes_of_stage: BoolArray,
        kv_use: float,
    ) -> None:
        """Send a plan, made by these rules and leaving this share of the KV blocks in use."""
        plan = command.plan
        # By the stage, not by its size: the last piece of a prompt may be a single token too.
        decodes = decodes_of_stage[plan.stages]
        num_decodes = int(np.count_nonzero(decodes))
        ends, size = plan.positions + plan.num_tokens, self.info.block_tokens
        fills = (ends // size > plan.positions // size).nonzero()[0]
        num_tokens = int(plan.num_tokens.sum())
        self._in_flight.append(
            InFlight(
                step=command.step,
                revision=command.revision,
                sampling=plan.sequences[plan.samples],
                filling=plan.sequences[fills],
                filled_to=ends[fills],
                planned_ns=time.monotonic_ns(),
                num_prefill_tokens=num_tokens - num_decodes,
                num_decode_tokens=num_decodes,
                shape=shape_of(plan),
                causes=plan.causes[plan.samples] if len(plan.causes) else plan.causes,
                chunks=[]
                if num_decodes == len(plan.sequences)
                else list(zip(plan.sequences[~decodes].tolist(), plan.num_tokens[~decodes].tolist(), strict=True)),
                budget_use=num_tokens / token_budget,
                kv_use=kv_use,
            )
        )
        self.stream.send(
            StepMessage(
                step=command.step,
                sequences=plan.sequences.tobytes(),
                positions=plan.positions.tobytes(),
                num_tokens=plan.num_tokens.tobytes(),
                samples=plan.samples.tobytes(),
                num_new_blocks=plan.num_new_blocks.tobytes(),
                new_blocks=plan.new_blocks.tobytes(),
                starts=starts,
                released=plan.released,
                copied=plan.copied.tobytes(),
                copies=plan.copies.tobytes(),
            )
        )

    def finish(self, result: StepResult) -> tuple[StepTokens, StepEnded]:
        """Match a result with its step.

        Raises:
            ResultError: it is not the oldest step in flight, or is about another number of tokens.
        """
        clock = self.stream.clock
        if clock.ahead_ns:
            stamps = (result.launched_ns, result.computed_ns, result.returned_ns)
            launched_ns, computed_ns, returned_ns = map(clock.ours, stamps)
            result = msgspec.structs.replace(
                result, launched_ns=launched_ns, computed_ns=computed_ns, returned_ns=returned_ns
            )
        if not self._in_flight or self._in_flight[0].step != result.step:
            expected = f"step {self._in_flight[0].step}" if self._in_flight else "none"
            raise ResultError(f"a result of step {result.step}; expected {expected}")
        plan = self._in_flight.popleft()
        sizes = (len(result.tokens), len(result.ended))
        if sizes != (plan.sampling.size * TOKEN_BYTES, plan.sampling.size):
            raise ResultError(
                f"step {result.step} sampled {plan.sampling.size} tokens, its result has {sizes[0]} bytes of tokens "
                f"and {sizes[1]} flags"
            )
        try:
            logprobs = None if result.logprobs is None else result.logprobs.unpack(plan.sampling.size)
        except ValueError as error:
            raise ResultError(f"step {result.step}: {error}") from error
        tokens = np.frombuffer(result.tokens, np.int32)
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < self.info.vocabulary_size:
            raise ResultError(f"step {result.step}: tokens outside of the vocabulary of {self.info.vocabulary_size}")
        ended = np.frombuffer(result.ended, np.bool_)
        step_time_ns = result.computed_ns - max(result.launched_ns, self._ended_ns)
        self._ended_ns = result.computed_ns
        now_ns = time.monotonic_ns()
        ended_ago_s = min(max(0.0, (now_ns - result.computed_ns) / 1e9), LONGEST_RETURN_S)
        event = StepEnded(
            executor=self.number,
            step=result.step,
            step_time_s=max(0, step_time_ns) / 1e9,
            ended=plan.sampling[ended].tolist(),
            ended_ago_s=ended_ago_s,
            failed=result.failed,
        )
        ended_ns = now_ns - int(ended_ago_s * 1e9)
        step = StepTokens(
            self.number, plan, result, tokens, event.step_time_s, ended_ns, logprobs, clock.uncertainty_ns
        )
        return step, event
