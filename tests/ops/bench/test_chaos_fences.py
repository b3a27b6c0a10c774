"""A process that is woken is fenced off if all its neighbours have left it, or if it was killed."""

from pathlib import Path

from ops.bench.chaos import _fences
from ops.bench.chaos_faults import Strikes
from ops.bench.chaos_fences import Watch, words
from ops.bench.chaos_load import Tally
from ops.bench.chaos_runs import Outcome

LEFT = {
    "admission": "00:39:38.601 INFO admission: scheduler 0 disconnected: silent for 5 s",
    "executor": "00:39:38.172 WARNING executor: lost the scheduler: the peer was silent for 5 s",
    "gateway": "00:39:38.685 WARNING gateway: stream to scheduler lost: silent for 5 s",
    "gateway-2": "00:39:38.686 WARNING gateway-2: stream to scheduler lost: silent for 5 s",
}


def say(logs: Path, name: str, line: str) -> None:
    with (logs / f"{name}.log").open("a") as log:
        log.write(line + "\n")


def test_a_scheduler_is_fenced_off_once_the_last_of_its_neighbours_has_left_it(tmp_path: Path) -> None:
    for name, line in LEFT.items():
        say(tmp_path, name, line)  # of the time before
    watch = Watch("scheduler", tmp_path)
    for name, line in [*LEFT.items()][:-1]:
        say(tmp_path, name, line)
    fence = watch.look(is_gone=False)
    assert (fence.holds, fence.present) == (False, ("gateway-2",))
    assert words([fence]) == "gateway-2 had not left it"
    say(tmp_path, "gateway-2", LEFT["gateway-2"])
    assert watch.look(is_gone=False).holds


def test_an_executor_is_fenced_off_by_the_scheduler_and_by_its_death(tmp_path: Path) -> None:
    watch = Watch("executor", tmp_path)
    gone, loose = watch.look(is_gone=True), watch.look(is_gone=False)
    assert (gone.holds, loose.holds) == (True, False)
    say(tmp_path, "scheduler", "00:40:34.887 INFO scheduler: executor 0281194e disconnected: closed by this process")
    woken = watch.look(is_gone=False)
    assert words([woken, gone]) == ("1 woken when all its neighbours had left it; 1 killed before it could be woken")
    strikes = Strikes(3)
    strikes.fences = [woken, loose, gone]
    (row,) = _fences(Outcome("wake-executor", Tally(), strikes, "", {}, [], 1.0))
    assert (row.metric, row.ours, row.reference, row.ok) == ("wake-executor: woken and not fenced off", 1, 3, False)
