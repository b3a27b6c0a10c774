"""P1, P7, P8, P14: whatever happens, everything drains, plans can be run and runs can be repeated."""

import random

import pytest

SHIPPED = ("fcfs", "sarathi", "vllm", "slai")


@pytest.mark.parametrize("steps_in_flight", [1, 2])
@pytest.mark.parametrize("policy", SHIPPED)
def test_one_request_gets_exactly_its_tokens(world, policy, steps_in_flight):
    w = world(policy)
    w.join(max_steps_in_flight=steps_in_flight)
    w.release(1, prompt=1000, output=7)
    w.drain()
    assert w.tokens == {1: 7}
    assert (w.finished[1].outcome, w.finished[1].output_tokens) == ("finished", 7)
    assert w.used_blocks() == 0


@pytest.mark.parametrize("steps_in_flight", [1, 2])
@pytest.mark.parametrize("first_token", ["last_chunk", "next_decode"])
@pytest.mark.parametrize("policy", SHIPPED)
def test_a_tiny_pool_changes_no_count_of_tokens(world, policy, first_token, steps_in_flight):
    rng = random.Random(f"{policy}{steps_in_flight}")  # noqa: S311  repeatable
    w = world(policy, first_token=first_token)
    w.join(num_blocks=24, block_tokens=4, max_steps_in_flight=steps_in_flight)
    outputs = {}
    for request in range(40):
        outputs[request] = rng.randint(1, 40)
        w.release(request, prompt=rng.randint(1, 50), output=outputs[request], slo_class=rng.choice(["paid", "free"]))
        if w.busy() and rng.random() < 0.5:
            w.end_step()
    w.drain()
    assert w.tokens == outputs
    assert {r: f.output_tokens for r, f in w.finished.items()} == outputs
    assert w.core.snapshot().num_preemptions > 0
    assert w.used_blocks() == 0
    assert not w.executors[0].tables
