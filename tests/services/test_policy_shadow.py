"""What a shadow says, and how it ends when its scheduler does."""

from pathlib import Path

import pytest

from policies.document.loading import load_policy
from policies.event_log import encode_record
from policies.events import ExecutorJoined, PolicyApplied, Released, Started, StepEnded
from policies.scheduling.core import SchedulerCore
from policies.scheduling.shadow import Disagreement, Example, Tally, copy_of
from services.policy_documents import CommandError
from services.policy_shadow import _Watcher, as_json, in_words
from services.wire_operator import MirrorEnded, MirrorRecords, MirrorState

POLICIES = Path(__file__).resolve().parents[2] / "policies"
SLAI, FCFS = ((POLICIES / f"{name}.yaml").read_bytes() for name in ("slai", "fcfs"))


def core() -> SchedulerCore:
    made = SchedulerCore()
    made.handle(Started(0.0), 0.0)
    made.handle(PolicyApplied(1, SLAI), 0.0)
    made.handle(ExecutorJoined(0, 64, 16, 512), 0.0)
    return made


def told(live: SchedulerCore, *events: object) -> MirrorRecords:
    return MirrorRecords(b"".join(encode_record(1.0, event, live.handle(event, 1.0)) for event in events))  # type: ignore[arg-type]


async def test_what_was_compared_comes_back_when_the_time_is_up() -> None:
    live, watcher = core(), _Watcher(FCFS, 60)
    watcher.received(None, MirrorState(copy_of(live)))
    watcher.received(None, told(live, Released(1, "free", 20, 4), StepEnded(0, 1, 0.01)))
    watcher.received(None, MirrorEnded())
    assert (await watcher.ended).num_plans == 2


async def test_a_live_policy_that_changes_ends_the_shadow(capsys: pytest.CaptureFixture[str]) -> None:
    live, watcher = core(), _Watcher(FCFS, 60)
    watcher.received(None, MirrorState(copy_of(live)))
    watcher.received(None, told(live, Released(1, "free", 20, 4), PolicyApplied(2, FCFS), StepEnded(0, 1, 0.01)))
    assert (await watcher.ended).num_plans == 1
    assert "the live policy was changed: the shadow ends here" in capsys.readouterr().err


async def test_a_mirror_that_cannot_be_trusted_is_an_error() -> None:
    live, watcher = core(), _Watcher(FCFS, 60)
    watcher.received(None, MirrorState(copy_of(live)))
    live.handle(Released(1, "free", 300, 4), 0.5)
    watcher.received(None, told(live, Released(2, "free", 20, 4)))
    with pytest.raises(CommandError, match="otherwise than the live scheduler"):
        await watcher.ended


@pytest.mark.parametrize("begun", [True, False])
async def test_a_scheduler_that_goes_away_is_an_error(begun: bool) -> None:
    watcher = _Watcher(FCFS, 60)
    if begun:
        watcher.received(None, MirrorState(copy_of(core())))
    watcher.closed(None, "closed by the peer")
    with pytest.raises(CommandError, match="the scheduler went away: closed by the peer"):
        await watcher.ended


async def test_comparisons_beyond_the_budget_are_skipped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.policy_shadow.COMPARING_SHARE", 0.0)
    live, watcher = core(), _Watcher(FCFS, 60)
    watcher.received(None, MirrorState(copy_of(live)))
    watcher.received(None, told(live, Released(1, "free", 20, 4), StepEnded(0, 1, 0.01)))
    watcher.stop()
    tally = await watcher.ended
    assert (tally.num_plans, tally.num_compared) == (2, 1)  # the first costs nothing yet
    assert as_json(tally)["num_skipped"] == 1  # type: ignore[index]


async def test_somebody_who_stops_before_anything_came_is_told_so() -> None:
    watcher = _Watcher(FCFS, 60)
    watcher.stop()
    with pytest.raises(CommandError, match="stopped before the scheduler had sent its state"):
        await watcher.ended


def test_disagreements_are_explained_with_stage_share_and_example() -> None:
    example = Example(1.0, 17, "free", 300, "prefill", 64, 0)
    tally = Tally(
        num_plans=100,
        num_compared=50,
        num_agreed=40,
        num_rows=500,
        disagreements=[
            Disagreement("deferral", "live", 1, example, 12, 10),
            Disagreement("chunk", "candidate", -1, example, 1, 1),
            Disagreement("preemption", "candidate", None, example, 1, 1),
        ],
    )
    words = in_words(tally, load_policy(SLAI), load_policy(FCFS)).splitlines()
    first = "100 plans of the live policy, 50 compared (50 skipped, to keep to the budget); "
    assert words[0] == first + "40 of them are the same (80.0%)."
    assert words[2].startswith(
        "deferral: a sequence was left out of the step by one alone; by the live policy (slai), 12"
    )
    assert words[2].endswith("12 times in 10 plans (20.0%)")
    assert words[3].startswith("  planned by stage 2: ")
    assert "sequence 17 (free, prefill, prompt of 300 tokens): live 64 tokens, candidate nothing" in words[4]
    assert "implicit first stage" in words[7]
    assert in_words(Tally(), load_policy(SLAI), load_policy(FCFS)).startswith("The live policy planned nothing")
