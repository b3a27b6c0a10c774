"""What the scheduler owes each admission process: which of its requests it has, and how the others have ended.

Owns the ends that no admission has acknowledged, so that one that was killed learns of them when it is back. Knows
counts and names; does not know tokens' values or steps.
"""

from collections import OrderedDict

import msgspec
import numpy as np

from policies.commands import Int64Array
from policies.events import HeldAtScheduler
from services.scheduler.sequences import INT32_BYTES, Sequences, output_tokens_of
from services.transport import Stream
from services.troubles import ENDS, Troubles
from services.wire import Capacity, Dispatch, Holds, RequestEnded, Submit, Usage

ADMISSION = "admission"
"""What its processes call themselves."""
MOST_ENDS = 100_000
"""Kept for an admission process that does not come back, or whose store fails, 70 MB of them; the oldest go first."""


class _Owed:
    """To one admission process, over all of its connections."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.has_asked = False
        """On this connection: it has said which ends it has kept, and so keeps account of them."""
        self.num_ends = 0
        self.ends: OrderedDict[int, tuple[HeldAtScheduler, RequestEnded]] = OrderedDict()
        """Not acknowledged, by number: what was held, and how it ended."""

    def send(self, message: Capacity | Holds | RequestEnded | Usage) -> None:
        if self.stream is not None:
            self.stream.send(message)


class Admissions:
    """The admission processes that have released something to this scheduler, connected or not."""

    def __init__(self, sequences: Sequences, troubles: Troubles) -> None:
        self._sequences = sequences
        self._troubles = troubles
        self._owed: dict[str, _Owed] = {}
        """By instance."""
        self._held: dict[int, tuple[_Owed, HeldAtScheduler]] = {}
        """By request: who released it, and what it was."""
        self._owner: dict[int, _Owed] = {}
        """By sequence."""

    def opened(self, stream: Stream, capacity: Capacity) -> None:
        """An admission process is there (again)."""
        owed = self._owed.setdefault(stream.peer.instance, _Owed())
        owed.stream, owed.has_asked = stream, False
        stream.send(capacity)

    def closed(self, stream: Stream) -> None:
        """It is gone, for now at least."""
        owed = self._owed[stream.peer.instance]
        if owed.stream is stream:
            owed.stream = None

    def tell(self, capacity: Capacity) -> None:
        """The capacity has changed."""
        for owed in self._owed.values():
            owed.send(capacity)

    def kept(self, stream: Stream, number: int, capacity: Capacity) -> None:
        """It has settled the ends up to a number for good. Asked first by one that has connected, it is told all the
        rest: what is held, the ends it does not know, and the capacity, from which on it may release.
        """
        owed = self._owed[stream.peer.instance]
        while owed.ends and next(iter(owed.ends)) <= number:
            owed.ends.popitem(last=False)
        if all(len(each.ends) < MOST_ENDS for each in self._owed.values()):
            self._troubles.over(ENDS, "admission keeps the ends of requests again")
        if owed.has_asked:
            return
        owed.has_asked = True
        held = [self._now(each) for by, each in self._held.values() if by is owed]
        stream.send(Holds([*held, *(each for each, _ in owed.ends.values())]))
        for _, ended in owed.ends.values():
            stream.send(ended)
        stream.send(capacity)

    def dispatched(self, stream: Stream, dispatch: Dispatch) -> None:
        """It released a request to this scheduler."""
        submit = dispatch.submit
        held = HeldAtScheduler(
            request=submit.request,
            tenant=submit.tenant,
            project=submit.project,
            key=submit.key,
            slo_class=dispatch.slo_class,
            weight=submit.weight,
            prompt_tokens=len(submit.prompt) // INT32_BYTES,
            max_output_tokens=0 if submit.pooling else submit.max_output_tokens,
            num_choices=len(submit.sampling),
            output_tokens=output_tokens_of(submit),
            attempt=submit.attempt,
            tier=submit.tier,
        )
        owed = self._owed[stream.peer.instance]
        self._held[submit.request] = (owed, held)
        for choice in range(held.num_choices):
            self._owner[submit.request + choice] = owed

    def dispatched_again(self, stream: Stream, submit: Submit) -> None:
        """It released a request that is here: nothing changes, but that this is what its end will answer. A gateway
        that lost one admission process may have gone to another, which is to forget it then.
        """
        owed, held = self._held[submit.request]
        if owed is self._owed[stream.peer.instance]:
            self._held[submit.request] = owed, msgspec.structs.replace(held, attempt=submit.attempt)
        else:
            sentence = "another admission process has released it"
            stream.send(RequestEnded(submit.request, "refused", 0, "already_here", sentence, attempt=submit.attempt))

    def produced(self, sequences: Int64Array, prefix_hits: list[tuple[int, int]]) -> None:
        """These sequences have got an output token each, and these requests have found cached tokens."""
        if not len(sequences) and not prefix_hits:
            return
        if len(self._owed) == 1:
            (owed,) = self._owed.values()
            owed.send(Usage(sequences.tobytes(), prefix_hits))
            return
        owners = [self._owner.get(sequence) for sequence in sequences.tolist()]
        for owed in self._owed.values():
            own = np.array([owner is owed for owner in owners], bool)
            hits = [hit for hit in prefix_hits if self._owner.get(hit[0]) is owed]
            if own.any() or hits:
                owed.send(Usage(sequences[own].tobytes(), hits))

    def ended(self, ended: RequestEnded) -> None:
        """A request is over; told now, and again to whoever comes back without having acknowledged it."""
        owed, held = self._held.pop(ended.request)
        for choice in range(held.num_choices):
            del self._owner[ended.request + choice]
        held = msgspec.structs.replace(self._now(held), output_tokens=ended.output_tokens)
        owed.num_ends += 1
        numbered = msgspec.structs.replace(ended, number=owed.num_ends, attempt=held.attempt)
        owed.ends[owed.num_ends] = (held, numbered)
        if len(owed.ends) > MOST_ENDS:
            lost, _ = owed.ends.popitem(last=False)
            sentence = f"admission has kept none of the last {MOST_ENDS} ends of requests: those up to number {lost}"
            consequence = "are forgotten, and a restart of admission would charge by what it had kept before"
            self._troubles.begin(ENDS, f"{sentence} {consequence}")
        owed.send(numbered)

    def _now(self, held: HeldAtScheduler) -> HeldAtScheduler:
        if held.request not in self._sequences:
            return held
        output_tokens, cached_tokens = self._sequences.progress(held.request)
        return msgspec.structs.replace(held, output_tokens=output_tokens, cached_tokens=cached_tokens)
