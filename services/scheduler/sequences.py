"""The tokens of released sequences: what an executor must be given to begin or to go on after a preemption.

Owns prompts and outputs as bytes and integers, and what they hash to; knows no block and no policy.
"""

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.interface import Sampling, SequenceStart
from services.scheduler.prefix_keys import PrefixKeys, Salt
from services.wire import Dispatch

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

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.prompt) // INT32_BYTES + len(self.output)


class Sequences:
    """All sequences of all requests that are not finished."""

    def __init__(self) -> None:
        self.by_id: dict[int, Sequence] = {}
        self.salt = Salt()
        self._num_choices: dict[int, int] = {}

    def __contains__(self, request: int) -> bool:
        """The request is here and not finished."""
        return request in self._num_choices

    def add(self, dispatch: Dispatch, now_ns: int) -> bytes:
        """A request was released. Returns the keys of its prompt; empty: it shares nothing."""
        submit = dispatch.submit
        keys, prompt_keys = self.salt.begin(submit.prompt) if submit.shares_prefix else (None, b"")
        self._num_choices[submit.request] = len(submit.sampling)
        for choice, sampling in enumerate(submit.sampling):
            own_keys = None if keys is None else keys.copy()
            self.by_id[submit.request + choice] = Sequence(
                submit.prompt, sampling, now_ns, array("i"), submit.grammar, own_keys, submit.pooling
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

    def remove(self, request: int) -> None:
        """A request is finished."""
        for choice in range(self._num_choices.pop(request)):
            del self.by_id[request + choice]
