"""The tokens of released sequences: what an executor must be given to begin or to go on after a preemption.

Owns prompts and outputs as bytes and integers; knows no block and no policy.
"""

from array import array
from dataclasses import dataclass

from engine.interface import Sampling, SequenceStart
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


class Sequences:
    """All sequences of all requests that are not finished."""

    def __init__(self) -> None:
        self.by_id: dict[int, Sequence] = {}
        self._num_choices: dict[int, int] = {}

    def __contains__(self, request: int) -> bool:
        """The request is here and not finished."""
        return request in self._num_choices

    def add(self, dispatch: Dispatch, now_ns: int) -> None:
        """A request was released."""
        submit = dispatch.submit
        self._num_choices[submit.request] = len(submit.sampling)
        for choice, sampling in enumerate(submit.sampling):
            self.by_id[submit.request + choice] = Sequence(submit.prompt, sampling, now_ns, array("i"), submit.grammar)

    def start(self, sequence: int) -> SequenceStart:
        """Prompt and kept output of a sequence."""
        held = self.by_id[sequence]
        return SequenceStart(
            sequence=sequence,
            tokens=held.prompt + held.output.tobytes(),
            num_prompt_tokens=len(held.prompt) // INT32_BYTES,
            sampling=held.sampling,
            grammar=held.grammar,
        )

    def remove(self, request: int) -> None:
        """A request is finished."""
        for choice in range(self._num_choices.pop(request)):
            del self.by_id[request + choice]
