"""Requests that come with output from a scheduler that was lost: they go on where their reader is."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.commands import Finish, StartStep
from policies.scheduling.causes import Cause


def of(kind, commands):
    return [command for command in commands if isinstance(command, kind)]


def finished(w, limit=50):
    """Steps until something has ended."""
    for _ in range(limit):
        if found := of(Finish, w.end_step()):
            return found
    raise AssertionError("nothing ends")


@pytest.mark.parametrize("policy", ["slai", "fcfs", "vllm", "sarathi", "fairlead"])
def test_what_was_made_is_computed_again_and_only_the_rest_is_made(world, policy):
    w = world(policy)
    w.join()
    started, *_ = of(StartStep, w.release(1, prompt=20, output=8, made_tokens=(5,)))
    assert started.plan.num_tokens.tolist() == [25]
    assert started.plan.causes.tolist() == [Cause.RESUMED]
    (finish,) = finished(w)
    assert (finish.outcome, finish.output_tokens) == ("finished", 8)
    assert w.tokens == {1: 3}


def test_a_choice_that_had_ended_is_not_made_again_and_counts(world):
    w = world()
    w.join()
    w.release(10, prompt=20, output=8, num_choices=3, made_tokens=(8, 2, 0), ended=(0,))
    (finish,) = finished(w)
    assert (finish.request, finish.output_tokens) == (10, 24)
    assert w.tokens == {11: 6, 12: 8}
    assert w.used_blocks() == 0


def test_an_executor_that_is_lost_too_costs_no_token(world):
    w = world()
    w.join()
    w.release(1, prompt=20, output=12, made_tokens=(5,))
    w.end_step()
    w.end_step()
    before = w.tokens[1]
    w.lose(0)
    w.join()
    (finish,) = finished(w)
    assert finish.output_tokens == 12
    assert w.tokens == {1: 7}
    assert before < 7


def test_one_that_comes_before_any_executor_waits_with_what_it_has(world):
    w = world()
    w.release(1, prompt=20, output=8, made_tokens=(5,))
    w.join()
    (finish,) = finished(w)
    assert finish.output_tokens == 8
    assert w.tokens == {1: 3}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["slai", "fcfs", "vllm", "orca", "sarathi", "rad", "amin", "fairlead"]),
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(0, 19)), min_size=1, max_size=8),
    st.booleans(),
)
def test_under_any_policy_and_memory_exactly_the_rest_is_made(world, policy, requests, is_tight) -> None:
    w = world(policy)
    w.join(num_blocks=12 if is_tight else 1000, block_tokens=8)
    rest = {}
    for number, (prompt, output, most_made) in enumerate(requests):
        made = min(most_made, output - 1)
        w.release(number, prompt, output, made_tokens=(made,))
        if number not in w.finished:
            rest[number] = output - made
    for _ in range(1000):
        if len(w.finished) == len(requests):
            break
        w.end_step()
    assert w.tokens == rest
    assert {number: w.finished[number].output_tokens for number in rest} == {
        number: requests[number][1] for number in rest
    }
    assert w.used_blocks() == 0
