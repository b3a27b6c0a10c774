"""Every wait of a token has the cause that the policy knows."""

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.scheduling.causes import Cause

HEAD = b"version: 1\nname: t\nclasses: [{name: paid, ttft_s: 1, tbt_s: 0.02}, {name: free, ttft_s: 5, tbt_s: 5}]\n"
STAGES = b"""
  stages:
    - decode:  {when: due, order: [last_schedulable_time, arrival]}
    - prefill: {from: [started, waiting], order: [arrival]}
    - decode:  {when: any, order: [last_schedulable_time, arrival]}
preemption: {victim: [newest_started_prefill, newest, self]}
"""


def policy(batching: bytes) -> bytes:
    return HEAD + b"batching:\n  max_sequences: 8\n" + batching + STAGES


def causes(world) -> Counter[Cause]:
    seen: Counter[Cause] = Counter()
    for start in world.plans:
        plan = start.plan
        assert len(plan.causes) in (0, len(plan.sequences))
        seen.update(Cause(cause) for cause in plan.causes.tolist())
    return seen


def end_all(world) -> None:
    while world.busy():
        world.end_step(world.busy()[0])


def test_a_decode_that_makes_way_for_a_prompt_was_deferred(world) -> None:
    w = world(policy(b"  token_budget: 8\n"))
    w.join()
    w.release(1, 4, 20)
    w.end_step()
    w.release(2, 40, 4)
    end_all(w)
    assert causes(w)[Cause.DEFERRED] > 0
    assert not causes(w)[Cause.BUDGET]


def test_a_decode_at_its_deadline_waited_for_the_budget_or_for_a_slot(world) -> None:
    small = {Cause.BUDGET: b"  token_budget: 4\n", Cause.SLOTS: b"  token_budget: 8\n  max_decodes: 2\n"}
    for cause, batching in small.items():
        w = world(policy(b"  token_budget: 64\n"))
        w.join()
        for request in range(1, 9):
            w.release(request, 4, 30, slo_class="paid")
        w.end_step()
        w.apply(policy(batching))
        end_all(w)
        assert causes(w)[cause] > 0
        assert set(causes(w)) <= {cause, Cause.PIPELINE}


def test_a_sequence_that_lost_its_blocks_waited_for_them(world) -> None:
    w = world(policy(b"  token_budget: 64\n"))
    w.join(num_blocks=6, block_tokens=4)
    w.release(1, 8, 12)
    w.release(2, 8, 12)
    end_all(w)
    assert causes(w)[Cause.PREEMPTED] > 0


def test_a_sequence_whose_executor_was_lost_is_computed_again(world) -> None:
    w = world(policy(b"  token_budget: 64\n"))
    w.join()
    w.release(1, 8, 12)
    for _ in range(4):
        w.end_step()
    w.lose(0)
    w.join(1)
    end_all(w)
    assert causes(w)[Cause.RECOMPUTE] == 1


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10)), min_size=1, max_size=8))
def test_whoever_is_in_every_plan_never_waited(world, requests) -> None:
    w = world(policy(b"  token_budget: 1000\n"))
    w.join(num_blocks=1000)
    for request, (prompt, output) in enumerate(requests, start=1):
        w.release(request, prompt, output)
    end_all(w)
    assert not +Counter({cause: n for cause, n in causes(w).items() if cause is not Cause.PIPELINE})
