"""P1, P7, P8, P14 under everything at once: cancels, stops, policy swaps, losses and stalled gateways."""

import random
from pathlib import Path

import pytest

from policies.events import CancelRequested, ExecutorLost, GatewayLost, GatewayResumed, GatewayStalled, StopFound

POLICIES = Path(__file__).resolve().parents[3] / "policies"
SHIPPED = tuple(sorted(path.stem for path in POLICIES.glob("*.yaml") if path.stem != "tenants"))


def live(world, seed: int, steps_in_flight: int, policies: tuple[str, ...], num_events: int = 250):
    rng = random.Random(seed)  # noqa: S311  repeatable
    w = world(policies[0])
    pools = {"num_blocks": 30, "block_tokens": 4, "max_steps_in_flight": steps_in_flight}
    w.join(0, **pools)
    w.join(1, **pools)
    num_requests = 0
    for _ in range(num_events):
        dice = rng.random()
        request = 4 * rng.randrange(num_requests + 1)
        if dice < 0.25:
            choices = rng.choice([1, 1, 1, 3])
            options = {"num_choices": choices, "gateway": rng.randrange(2), "slo_class": rng.choice(["paid", "free"])}
            w.release(4 * num_requests, prompt=rng.randint(1, 60), output=rng.randint(1, 50), **options)
            num_requests += 1
        elif dice < 0.30:
            w.send(CancelRequested(request=request))
        elif dice < 0.33:
            w.send(StopFound(sequence=request, output_tokens=min(1, w.tokens.get(request, 0))))
        elif dice < 0.36:
            w.apply(rng.choice(policies))
        elif dice < 0.38 and len(w.executors) > 1:
            w.lose(rng.choice(list(w.executors)))
        elif dice < 0.40:
            w.join(rng.choice([0, 1]), **pools) if len(w.executors) < 2 else w.send(ExecutorLost(executor=9))
        elif dice < 0.43:
            w.send(rng.choice([GatewayStalled, GatewayResumed])(gateway=rng.randrange(2)))
        elif dice < 0.435:
            w.send(GatewayLost(gateway=rng.randrange(2)))
        elif dice < 0.45 and w.wake_at is not None:
            w.wake()
        elif busy := w.busy():
            executor = rng.choice(busy)
            sampled = w.executors[executor].steps[0][1]
            ended = tuple(s for s in sampled if rng.random() < 0.02)
            w.end_step(executor, ended=ended)
    for gateway in (0, 1):
        w.send(GatewayResumed(gateway=gateway))
    w.drain()
    assert sorted(w.finished) == [4 * index for index in range(num_requests)]
    assert w.core.sequences == {}
    assert w.used_blocks() == 0
    assert all(fake.tables == {} for fake in w.executors.values())
    return w


@pytest.mark.parametrize("steps_in_flight", [1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_everything_released_ends_once_whatever_happens(world, seed, steps_in_flight):
    live(world, seed, steps_in_flight, SHIPPED)


@pytest.mark.parametrize("policy", SHIPPED)
def test_the_same_events_give_the_same_bytes(world, policy):
    first = live(world, 7, 2, (policy,), num_events=80)
    second = live(world, 7, 2, (policy,), num_events=80)
    assert first.log == second.log
