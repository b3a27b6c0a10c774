"""Commands as bytes."""

import numpy as np

from policies.commands import Deliver, Finish, Release, StartStep, StepPlan, WakeAt, decode, encode

PLAN = StepPlan(
    sequences=np.array([7, 8], np.int64),
    positions=np.array([0, 3], np.int32),
    num_tokens=np.array([4, 1], np.int32),
    samples=np.array([False, True]),
    stages=np.array([0, -1], np.int8),
    num_new_blocks=np.array([1, 0], np.int32),
    new_blocks=np.array([5], np.int32),
    starts=[7],
    released=[],
)


def test_commands_come_back_from_their_bytes_arrays_and_types_included() -> None:
    commands = [
        WakeAt(1.5),
        Release(7, "paid", 0.25, "the head of the queue"),
        StartStep(executor=0, step=3, revision=1, plan=PLAN),
        Deliver(executor=0, step=2, rows=np.array([0], np.int32), finish=np.array([2], np.int8)),
        Finish(request=7, outcome="finished", output_tokens=1),
    ]
    back = decode(encode(commands))
    assert encode(back) == encode(commands)
    assert back[:2] == commands[:2]
    plan = back[2].plan  # type: ignore[union-attr]
    for name in PLAN.__struct_fields__:
        ours, theirs = getattr(PLAN, name), getattr(plan, name)
        assert np.array_equal(ours, theirs)
        assert getattr(ours, "dtype", None) == getattr(theirs, "dtype", None)
