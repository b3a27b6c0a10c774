"""The tokens of released sequences: what an executor must be given to begin or to go on after a preemption.

Owns prompts and outputs as bytes and integers, and what they hash to; knows no block and no policy.
"""

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.interface import Sampling, SequenceStart
from services.scheduler.executors import StepTokens
from services.scheduler.prefix_keys import PrefixKeys, Salt
from services.traffic import gaps
from services.wire import Dispatch, Submit
from services.wire_parts import Measured

INT32_BYTES = 4


@dataclass(slots=True)
class Sequence:
    """One choice of a request."""

    prompt: bytes
    """Token ids, int32."""
    sampling: Sampling
    ready_ns: int
    """When its next token could first have been planned."""
    output: "array[int]"
    """Token ids delivered so far, int32."""
    grammar: str
    """What its output keeps to; empty: anything."""
    keys: PrefixKeys | None
    """None: it shares nothing."""
    pooling: str = ""
    """What its prompt becomes; empty: it is for its output's sake."""
    num_cached: int | None = None
    """Tokens that its first start found in the prefix cache; None before that."""
    made_ns: "array[int]" = field(default_factory=lambda: array("q"))
    """When each of its tokens was made."""
    chunks: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    """`stamps.CHUNK_COLUMNS` of each piece of its prompt, until its first token."""

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.prompt) // INT32_BYTES + len(self.output)


class Sequences:
    """All sequences of all requests that are not finished."""

    def __init__(self) -> None:
        self.by_id: dict[int, Sequence] = {}
        self.salt = Salt()
        self._requests: dict[int, _Request] = {}

    def __contains__(self, request: int) -> bool:
        """The request is here and not finished."""
        return request in self._requests

    def overlap(self, request: int, num_choices: int) -> bool:
        """Whether ids that a request of so many choices would own are taken."""
        return any(sequence in self.by_id for sequence in range(request, request + num_choices))

    def add(self, dispatch: Dispatch, now_ns: int) -> bytes:
        """A request was released. Returns the keys of its prompt; empty: it shares nothing."""
        submit = dispatch.submit
        keys, prompt_keys = self.salt.begin(submit.prompt) if submit.shares_prefix else (None, b"")
        self._requests[submit.request] = _Request(
            len(submit.sampling),
            dispatch.slo_class,
            now_ns - int(dispatch.waited_s * 1e9),
            prompt_keys,
            self.salt.key_tokens,
            any(submit.outputs),
        )
        outputs = submit.outputs or [b""] * len(submit.sampling)
        for choice, (sampling, output) in enumerate(zip(submit.sampling, outputs, strict=True)):
            own_keys = None if keys is None else keys.copy()
            self.by_id[submit.request + choice] = Sequence(
                submit.prompt,
                sampling,
                now_ns,
                array("i", output),
                submit.grammar,
                own_keys,
                submit.pooling,
                # What its first start found has been told, by the scheduler that was lost.
                num_cached=0 if output else None,
            )
        return prompt_keys

    def start(self, sequence: int, num_cached: int) -> SequenceStart:
        """Prompt and kept output of a sequence that found so many tokens in the prefix cache."""
        held = self.by_id[sequence]
        if held.num_cached is None:
            held.num_cached = num_cached
        return SequenceStart(
            sequence=sequence,
            tokens=held.prompt + held.output.tobytes(),
            num_prompt_tokens=len(held.prompt) // INT32_BYTES,
            sampling=held.sampling,
            grammar=held.grammar,
            pooling=held.pooling,
        )

    def keys_reached(self, sequences: NDArray[np.int64], ends: NDArray[np.int32]) -> list[tuple[int, bytes]]:
        """The new keys of sequences [n] whose first `ends` [n] positions have been computed; as `StepEnded.keys`."""
        reached = []
        for sequence, end in zip(sequences.tolist(), ends.tolist(), strict=True):
            held = self.by_id.get(sequence)
            if held is not None and held.keys is not None:
                output = memoryview(held.output).cast("B")
                keys = held.keys.reach(min(end, held.num_tokens), held.prompt, output)
                output.release()  # an array that is looked at cannot grow
                if keys:
                    reached.append((sequence, keys))
        return reached

    def note_chunks(self, returned: StepTokens) -> None:
        """Pieces of prompts that a step computed: what the first token of each will be explained with."""
        plan, result = returned.plan, returned.result
        for sequence, num_tokens in plan.chunks:
            held = self.by_id.get(sequence)
            if held is not None and not held.output:
                held.chunks.append((plan.step, num_tokens, plan.planned_ns, result.launched_ns, result.computed_ns))

    def measured(self, request: int) -> Measured:
        """How a request went that is about to be removed."""
        held = self._requests[request]
        series = [np.frombuffer(self.by_id[request + choice].made_ns, np.int64) for choice in range(held.num_choices)]
        first_ns = min((int(stamps[0]) for stamps in series if len(stamps)), default=None)
        return Measured(
            slo_class=held.slo_class,
            # Of one that came with output, its first token was made elsewhere.
            ttft_s=None if first_ns is None or held.is_resumed else max(0, first_ns - held.arrived_ns) / 1e9,
            gaps=gaps.pack(series),
            key_tokens=held.key_tokens if held.prompt_keys else 0,
            prompt_keys=held.prompt_keys,
        )

    def progress(self, request: int) -> tuple[int, int]:
        """Output tokens so far, all choices together, and prompt tokens that were found in the prefix cache; nothing of
        a request that is not here.
        """
        if request not in self._requests:
            return 0, 0
        first = self.by_id[request]
        cached = (first.num_cached or 0) if first.output else 0
        if first.pooling:
            return 0, cached
        choices = range(request, request + self._requests[request].num_choices)
        return sum(len(self.by_id[sequence].output) for sequence in choices), cached

    def remove(self, request: int) -> None:
        """A request is finished."""
        for choice in range(self._requests.pop(request).num_choices):
            del self.by_id[request + choice]


def output_tokens_of(submit: Submit) -> int:
    """Output that a request has already that is sent again, over all choices."""
    return 0 if submit.pooling else sum(map(len, submit.outputs)) // INT32_BYTES


def fault_of(submit: Submit) -> str:
    """Why nobody could go on with what a request says that it has, as a sentence; empty: it can be gone on with."""
    num_choices = len(submit.sampling)
    if submit.ended and not set(range(num_choices)) > set(submit.ended):
        return f"of {num_choices} choices, those numbered {submit.ended} are said to have ended"
    if not submit.outputs:
        return "choices are said to have ended, and not with what" if submit.ended else ""
    if len(submit.outputs) != num_choices or any(len(output) % INT32_BYTES for output in submit.outputs):
        return f"outputs of {[*map(len, submit.outputs)]} bytes are no {num_choices} rows of tokens"
    most_bytes = submit.max_output_tokens * INT32_BYTES
    going_on = [output for choice, output in enumerate(submit.outputs) if choice not in submit.ended]
    if max(map(len, going_on)) >= most_bytes or max(map(len, submit.outputs)) > most_bytes:
        return f"outputs of {[*map(len, submit.outputs)]} bytes leave nothing of {submit.max_output_tokens} tokens"
    return ""


class _Request(NamedTuple):
    """What all choices have in common."""

    num_choices: int
    slo_class: str
    arrived_ns: int
    """At admission, on the clock of this process."""
    prompt_keys: bytes
    key_tokens: int
    is_resumed: bool
