"""`fairlead policy plan NEW --shadow MINUTES`: the new policy plans beside the live one, without effect.

Owns the stream to the scheduler, the budget of comparisons and the printed form. The scheduler gives a copy of its core
and then what its core is told; everything else happens here, at a low priority. Whoever can read the streams' secret
may ask.
"""

import asyncio
import os
import signal
import sys
import time

import msgspec

from policies.document.explain import stage_in_words
from policies.document.loading import load_live_policy
from policies.document.schema import Policy
from policies.event_log import read_records
from policies.events import PolicyApplied
from policies.scheduling.shadow import CANDIDATE, KINDS, LIVE, Disagreement, Shadow, ShadowError, Tally
from services.policy_documents import CommandError, Document
from services.runtime import StartError, open_link
from services.settings import Deployment
from services.transport import AddressError, Identity, Stream
from services.wire import AnyMessage
from services.wire_operator import MirrorAsked, MirrorEnded, MirrorRecords, MirrorState

OPERATOR = "operator"
CONNECT_S = 3.0
LATEST_S = 10.0
"""After its time within which the scheduler must have said that it was the time."""
COMPARING_SHARE = 0.25
"""Of this process's time that may go into comparisons; plans beyond it are followed and not compared."""
NICENESS = 10


def shadow(deployment: Deployment, then: Document, minutes: float) -> Tally:
    """What the candidate would have planned instead, over that time or until Ctrl-C.

    Raises:
        CommandError: the scheduler cannot be reached, or does not keep the mirror up.
        PolicyError: the candidate is for replays only.
    """
    load_live_policy(then.content, then.label)
    os.nice(NICENESS)
    return asyncio.run(_watch(deployment, then, minutes * 60))


async def _watch(deployment: Deployment, then: Document, duration_s: float) -> Tally:
    watcher = _Watcher(then.content, duration_s)
    address = deployment.streams.scheduler
    try:
        link = open_link(deployment, address, Identity(OPERATOR, str(os.getpid()), time.time_ns()), watcher)
    except (StartError, AddressError) as error:
        raise CommandError(str(error)) from error
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, watcher.stop)
    try:
        async with asyncio.timeout(CONNECT_S):
            await watcher.connected.wait()
        async with asyncio.timeout(duration_s + LATEST_S):
            return await watcher.ended
    except TimeoutError as error:
        if watcher.connected.is_set():
            raise CommandError("the scheduler stopped answering") from error
        raise CommandError(f"no scheduler at {address}: a shadow needs the services running") from error
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        await link.close()


class _Watcher:
    """Receiver of the scheduler's stream."""

    def __init__(self, candidate: bytes, duration_s: float) -> None:
        self.connected = asyncio.Event()
        self.ended: asyncio.Future[Tally] = asyncio.get_running_loop().create_future()
        self._candidate = candidate
        self._duration_s = duration_s
        self._shadow: Shadow | None = None
        self._began_s = time.monotonic()
        self._comparing_s = 0.0

    def opened(self, stream: Stream) -> None:
        """Ask."""
        self.connected.set()
        stream.send(MirrorAsked(self._duration_s))

    def received(self, stream: Stream, message: AnyMessage) -> None:
        """The copy, what followed, or the end."""
        del stream
        if self.ended.done():
            return
        try:
            match message:
                case MirrorState():
                    self._shadow = Shadow(message.core, self._candidate)
                    self._began_s = time.monotonic()
                case MirrorRecords() if self._shadow is not None:
                    self._follow(self._shadow, message.records)
                case MirrorEnded():
                    self._end(message.error)
        except ShadowError as error:
            self._end(str(error))

    def closed(self, stream: Stream, reason: str) -> None:
        """The scheduler is gone, and what the mirror mirrored with it."""
        del stream
        self._end(f"the scheduler went away: {reason}")

    def stalled(self, stream: Stream) -> None:
        """Nothing much is sent."""

    def resumed(self, stream: Stream) -> None:
        """Nothing was held back."""

    def stop(self) -> None:
        """Somebody has seen enough."""
        self._end("")

    def _follow(self, shadow: Shadow, records: bytes) -> None:
        for record in read_records(records):
            if isinstance(record.event, PolicyApplied):
                print("the live policy was changed: the shadow ends here", file=sys.stderr)
                self._end("")
                return
            began = time.monotonic()
            compare = self._comparing_s <= COMPARING_SHARE * (began - self._began_s)
            num_compared = shadow.tally.num_compared
            shadow.follow(record.event, record.now, record.commands, compare=compare)  # type: ignore[arg-type]  # of the scheduler's log
            if shadow.tally.num_compared > num_compared:
                self._comparing_s += time.monotonic() - began

    def _end(self, error: str) -> None:
        if self.ended.done():
            return
        if error:
            self.ended.set_exception(CommandError(error))
        elif self._shadow is None:
            self.ended.set_exception(CommandError("stopped before the scheduler had sent its state"))
        else:
            self.ended.set_result(self._shadow.tally)


def in_words(tally: Tally, now: Policy, then: Policy) -> str:
    """What was seen, for people."""
    if not tally.num_compared:
        return "The live policy planned nothing meanwhile: there is nothing to compare."
    skipped = tally.num_plans - tally.num_compared
    plans = f"{tally.num_plans} plans of the live policy, {tally.num_compared} compared"
    plans += f" ({skipped} skipped, to keep to the budget)" if skipped else ""
    lines = [f"{plans}; {tally.num_agreed} of them are the same ({tally.num_agreed / tally.num_compared:.1%})."]
    lines += [_disagreement(each, tally, now, then) for each in tally.disagreements]
    return "\n".join(lines)


def as_json(tally: Tally) -> object:
    """The same for machines."""
    return {**msgspec.to_builtins(tally), "num_skipped": tally.num_plans - tally.num_compared}


def _disagreement(each: Disagreement, tally: Tally, now: Policy, then: Policy) -> str:
    policy = now if each.by == LIVE else then
    example = each.example
    share = each.num_plans / tally.num_compared
    times = f"{each.num_rows} times in {each.num_plans} plans ({share:.1%})"
    lines = [f"\n{each.kind}: {KINDS[each.kind]}; by the {each.by} policy ({policy.name}), {times}"]
    if each.stage is not None:
        lines.append(f"  planned by {_stage(each.stage, policy)}")
    lines.append(
        f"  for example sequence {example.sequence} ({example.slo_class or 'ended since'}, {example.was}, prompt of "
        f"{example.prompt_tokens} tokens): {LIVE} {_tokens(example.live_tokens)}, "
        f"{CANDIDATE} {_tokens(example.candidate_tokens)}"
    )
    return "\n".join(lines)


def _stage(index: int, policy: Policy) -> str:
    if index < 0:
        return "the implicit first stage: a prompt that no stage of the policy could finish"
    return f"stage {index + 1}: {stage_in_words(policy.batching.stages[index])}"


def _tokens(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}" if count else "nothing"
