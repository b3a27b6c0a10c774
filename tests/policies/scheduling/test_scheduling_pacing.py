"""Steps that follow time: as long as the most urgent decode allows, every decode in the last step that is in time."""

from itertools import pairwise

import pytest

PACED = b"""version: 1
name: t
classes:
  - {name: paid, ttft_s: 0.5, tbt_s: 0.1}
  - {name: free, ttft_s: 5.0, tbt_s: 0.5}
batching:
  token_budget: {max_step_s: auto, share: 0.9, tile: 32, min: 64, max: 4096}
  stages:
    - decode:  {when: due, order: [last_schedulable_time]}
    - prefill: {from: [started, waiting], merge: true, order: [remaining_prompt_tokens]}
    - decode:  {when: any, order: [last_schedulable_time]}
deadlines: {step_time: {ewma: 0.1}, slack: exact, eager_kv: 1.0}
"""
FIXED = PACED.replace(b"max_step_s: auto, share: 0.9", b"max_step_s: 0.03")


def step_s(plan):
    """A device: 5 ms, 0.1 ms a token, 1 us for each token that a decode reads; prompts read nothing."""
    decodes = plan.num_tokens == 1
    return 0.005 + 1e-4 * int(plan.num_tokens.sum()) + 1e-6 * int(plan.positions[decodes].sum())


def run(w, until=None):
    """Steps take what they would on the device; returns (plan, seconds) of each."""
    done = []
    while w.busy() and (until is None or w.now < until):
        plan = w.executors[0].steps[0][0].plan
        done.append((plan, step_s(plan)))
        w.end_step(step_s=done[-1][1])
    return done


def warm(w, steps_in_flight=1):
    """An executor whose steps the core has learned, with nothing left to do."""
    w.join(num_blocks=20_000, max_steps_in_flight=steps_in_flight, max_sequence_tokens=100_000)
    for request in range(100, 140):
        w.release(request, prompt=37 * (request - 90), output=5)
    run(w)
    w.token_times.clear()


def gaps(w, requests):
    return [later - earlier for request in requests for earlier, later in pairwise(w.token_times[request])]


@pytest.mark.parametrize("steps_in_flight", [1, 2])
@pytest.mark.parametrize("first_token", ["last_chunk", "next_decode"])
def test_steps_are_as_long_as_the_most_urgent_decode_allows(world, steps_in_flight, first_token):
    w = world(PACED, first_token=first_token)
    warm(w, steps_in_flight)
    w.release(1, prompt=64, output=60, slo_class="paid")
    for request in range(2, 12):
        w.release(request, prompt=64, output=30)
    run(w, until=w.now + 0.2)
    w.release(20, prompt=30_000, output=2)
    steps = run(w, until=w.now + 2.0)
    assert max(gaps(w, [1])) <= 0.1
    assert max(gaps(w, range(2, 12))) <= 0.5
    full = [(plan, seconds) for plan, seconds in steps if plan.num_tokens.max() > 64]
    assert len(full) > 10
    assert sum(seconds for _, seconds in full) / len(full) > 0.08, "the paid decode's time is not used"
    assert all(int(plan.num_tokens.sum()) % 32 == 0 for plan, _ in full[:-1])
    deferred = [plan for plan, _ in full if len(plan.sequences) < 5]
    assert len(deferred) > len(full) / 2, "decodes with time left are in every step"


def test_without_deadlines_a_step_is_as_large_as_it_may_be(world):
    w = world(PACED)
    w.join(num_blocks=2000, max_steps_in_flight=1)
    w.release(1, prompt=8000, output=2)
    steps = run(w)
    assert [int(plan.num_tokens[0]) for plan, _ in steps] == [4096, 8000 - 4096, 1]


def test_a_step_that_prompts_make_long_grows_no_faster_than_what_was_seen(world):
    w = world(PACED)
    w.join(num_blocks=20_000, max_steps_in_flight=1, max_sequence_tokens=100_000)
    w.release(1, prompt=16, output=90, slo_class="paid")
    run(w, until=0.05)
    w.release(2, prompt=20_000, output=2)
    sizes = [int(plan.num_tokens.max()) for plan, _ in run(w, until=1.0)]
    pieces = [size for size in sizes if size > 1]
    assert 63 <= pieces[0] <= 64
    assert max(pieces) > 500
    assert all(later <= 2 * (earlier + 1) for earlier, later in pairwise(pieces))


def test_a_fixed_time_bounds_prompts_and_decodes_that_are_not_due(world):
    w = world(FIXED)
    warm(w)
    for request in range(1, 101):
        w.release(request, prompt=800, output=20)
    steps = run(w, until=w.now + 5.0)
    late = [seconds for plan, seconds in steps if seconds > 0.03 * 1.1]
    assert len(steps) > 100
    assert len(late) < len(steps) / 20
    assert max(len(plan.sequences) for plan, _ in steps) < 60, "everybody's decode never fits 30 ms"


def test_all_decodes_are_due_once_memory_is_short(world):
    w = world(PACED.replace(b"eager_kv: 1.0", b"eager_kv: 0.0"))
    warm(w)
    for request in range(1, 11):
        w.release(request, prompt=64, output=30)
    run(w, until=w.now + 0.2)
    w.release(20, prompt=30_000, output=2)
    steps = run(w, until=w.now + 0.5)
    assert all(len(plan.sequences) == 11 for plan, _ in steps[2:-1])


def test_whoever_has_no_token_yet_is_due_at_once(world):
    w = world(PACED, first_token="next_decode")
    warm(w)
    w.release(1, prompt=64, output=30)
    run(w, until=w.now + 0.1)
    w.release(2, prompt=30_000, output=2)
    w.release(3, prompt=32, output=30)
    begins = w.now
    run(w, until=begins + 1.0)
    assert w.token_times[3][0] < begins + 0.5
    assert w.token_times[3][1] > w.token_times[3][0] + 0.2, "its second token has time"


def test_a_long_prompt_leaves_room_for_short_ones(world):
    headroom = b"kv: {watermark: 0, headroom: {share: 0.5, prompt_tokens: 64}}\n"
    w = world(PACED + headroom)
    w.join(num_blocks=100, max_steps_in_flight=1)
    w.release(1, prompt=400, output=200)
    w.release(2, prompt=400, output=200)
    w.release(3, prompt=64, output=200)
    w.end_step()
    w.end_step()
    holders = [s.id for s in w.core.executors[0].holders()]
    assert holders == [1, 3], "the second long one would start into the room of the short ones"
    w.drain()
    assert all(finish.outcome == "finished" for finish in w.finished.values())
