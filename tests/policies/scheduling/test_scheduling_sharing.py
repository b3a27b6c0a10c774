"""Prefixes are shared, and nobody ever reads what is not its own: executors here remember what each KV slot holds."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.events import CancelRequested, GatewayLost, GatewayResumed, GatewayStalled, StopFound

Tokens = tuple[int, ...]


def policy(share: str = "tenant", budget: int = 64, max_sequences: int = 32, chunk: int = 1) -> bytes:
    return f"""version: 1
name: t
classes: [{{name: paid, ttft_s: 1, tbt_s: 0.1}}, {{name: free, ttft_s: 5, tbt_s: 0.5}}]
batching:
  token_budget: {budget}
  max_sequences: {max_sequences}
  stages:
    - decode:  {{order: [arrival]}}
    - prefill: {{from: started, order: [admission], chunk: {chunk}}}
    - prefill: {{from: waiting, order: [arrival], chunk: {chunk}}}
kv: {{share: {share}, watermark: 0}}
""".encode()


def words(count: int, start: int = 0) -> Tokens:
    return tuple(range(start, start + count))


def test_a_prompt_that_begins_like_an_earlier_one_computes_only_the_rest(sharing):
    w = sharing(policy())
    w.join()
    w.ask(0, words(10), output=1)
    w.drain()
    assert w.computed() == 10
    w.ask(1, words(8) + words(5, 100), output=1)
    w.drain()
    assert w.computed() == 10 + 5
    assert w.plans[-1].plan.cached == [8]
    assert (w.core.snapshot().num_prefix_hits, w.core.snapshot().num_prefix_hit_tokens) == (1, 8)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 7, 8, 9])
def test_the_same_prompt_again_computes_its_last_token_alone(sharing, length):
    w = sharing(policy())
    w.join()
    for request in (0, 1):
        w.ask(request, words(length), output=1)
        w.drain()
    assert w.computed() == length + 1


def test_an_executor_that_cannot_copy_shares_full_blocks_only(sharing):
    w = sharing(policy())
    w.join(copies_blocks=False)
    for request in (0, 1):
        w.ask(request, words(8), output=1)
        w.drain()
    assert w.computed() == 8 + 4


def test_a_later_turn_of_a_chat_finds_the_answer_before_it(sharing):
    w = sharing(policy())
    w.join()
    w.ask(0, words(6), output=7)
    w.drain()
    # The last of the 13 tokens was never computed, so the first 12 are three blocks.
    w.ask(1, w.texts.of(0, 13) + words(3, 50), output=1)
    w.drain()
    assert w.plans[-1].plan.cached == [12]


@pytest.mark.parametrize(
    ("share", "other", "computed"),
    [("tenant", "acme", 1), ("tenant", "globex", 8), ("all", "globex", 1), ("none", "acme", 8)],
)
def test_the_policy_says_who_shares_with_whom(sharing, share, other, computed):
    w = sharing(policy(share))
    w.join()
    w.ask(0, words(8), output=1, owner="acme")
    w.drain()
    w.ask(1, words(8), output=1, owner=other)
    w.drain()
    assert w.computed() == 8 + computed


def test_a_request_without_keys_finds_and_leaves_nothing(sharing):
    w = sharing(policy())
    w.join()
    w.ask(0, words(8), output=1)
    w.drain()
    for request in (1, 2):
        w.ask(request, words(8), output=1, prompt_keys=b"", key_tokens=0)
        w.drain()
    assert w.computed() == 3 * 8


@pytest.mark.parametrize("length", [3, 8, 9, 11, 40])
@pytest.mark.parametrize("budget", [8, 64])
def test_the_choices_of_a_request_compute_its_prompt_once(sharing, length, budget):
    w = sharing(policy(budget=budget))
    w.join()
    w.ask(0, words(length), output=1, num_choices=4)
    w.drain()
    assert w.computed() == length + 3
    assert w.finished[0].output_tokens == 4


def test_the_choices_of_a_request_hold_its_full_blocks_once(sharing):
    w = sharing(policy())
    w.join(max_steps_in_flight=1)
    w.ask(0, words(40), output=8, num_choices=4)
    for _ in range(3):
        w.end_step()
    assert w.core.snapshot().num_running == 4
    # Ten blocks of prompt, the last of which the three siblings have as a copy, and a block of output each.
    assert w.used_blocks() == 10 + 3 + 4
    w.drain()


def test_equal_prompts_that_come_together_are_computed_once_and_others_pass_them(sharing):
    w = sharing(policy())
    w.ask(0, words(32), output=1)
    w.ask(1, words(32), output=1)
    w.ask(2, words(3, 100), output=1)
    w.join()
    assert w.plans[0].plan.starts == [0, 2]
    w.drain()
    assert w.computed() == 32 + 1 + 3


def test_who_waits_for_a_prefix_bars_nobody_where_started_and_waiting_are_ordered_together(sharing):
    w = sharing(MERGED.replace(b"token_budget: 11", b"token_budget: 64"))
    for request, start in enumerate((0, 0, 100)):
        w.ask(request, words(16 + request // 2, start), output=1)
    w.join()
    assert w.plans[0].plan.starts == [0, 2]
    w.drain()
    assert sorted(w.finished) == [0, 1, 2]


def test_no_more_wait_for_a_prefix_than_could_run(sharing):
    w = sharing(policy(max_sequences=3))
    for request in range(20):
        w.ask(request, words(16), output=2)
    w.join()
    waiting = [request for request, sequence in w.core.sequences.items() if sequence.awaits is not None]
    assert waiting == [1, 2, 3]
    w.drain()
    assert sorted(w.finished) == list(range(20))
    assert w.computed() == 16 + 20 + 19


@pytest.mark.parametrize("trouble", ["cancelled", "stalled", "policy"])
def test_who_waits_for_a_prefix_goes_on_when_nobody_computes_it(sharing, trouble):
    w = sharing(policy(budget=6, chunk=4))
    w.join()
    w.ask(0, words(40), output=2, gateway=1)
    w.ask(1, words(40), output=2)
    w.end_step()
    assert w.core.sequences[1].awaits is not None
    match trouble:
        case "cancelled":
            w.send(CancelRequested(request=0))
        case "stalled":
            w.send(GatewayStalled(gateway=1))
            w.now += 1.0
            w.wake()
        case "policy":
            w.apply(policy("none", budget=6, chunk=4))
    w.drain()
    assert 1 in w.finished
    w.send(GatewayResumed(gateway=1))
    w.drain()
    assert 0 in w.finished


def test_nobody_waits_for_somebody_less_important(sharing):
    w = sharing(policy(budget=128))
    w.ask(0, words(40), output=2)
    w.ask(1, words(40), output=2, slo_class="paid")
    w.ask(2, words(40), output=2)
    w.join()
    assert w.plans[0].plan.starts == [0, 1]
    assert w.core.sequences[2].awaits is not None
    w.drain()
    assert sorted(w.finished) == [0, 1, 2]


def test_a_preempted_sequence_finds_its_own_blocks_again(sharing):
    w = sharing(policy(max_sequences=2))
    w.join(num_blocks=12)
    w.ask(0, words(16), output=20)
    w.ask(1, words(16, 500), output=20)
    w.drain()
    assert w.core.snapshot().num_preemptions > 0
    resumed = [cached for command in w.plans for cached in command.plan.cached[-1:] if cached]
    assert resumed
    assert w.finished[0].output_tokens == w.finished[1].output_tokens == 20


def test_the_prefix_that_was_used_longest_ago_makes_room(sharing):
    w = sharing(policy())
    w.join(num_blocks=5)
    for request, start in enumerate((0, 100, 0, 200, 0, 100)):
        w.ask(request, words(8, start), output=1)
        w.drain()
    # 0 and 100 computed, 0 found; 200 took the place of 100, so 0 is still found and 100 is not.
    assert [command.plan.cached[0] for command in w.plans] == [0, 0, 7, 0, 7, 0]
    assert w.core.snapshot().num_evictions == 3


def test_a_policy_that_stops_sharing_lets_no_one_use_what_is_there(sharing):
    w = sharing(policy("all"))
    w.join()
    w.ask(0, words(8), output=1)
    w.drain()
    w.apply(policy("tenant"))
    w.ask(1, words(8), output=1)
    w.drain()
    w.apply(policy("none"))
    w.ask(2, words(8), output=1)
    w.drain()
    assert [command.plan.cached for command in w.plans] == [[0], [0], [0]]
    w.apply(policy("all"))
    w.ask(3, words(8), output=1)
    w.drain()
    assert w.plans[-1].plan.cached == [7]


def test_keys_of_a_finer_grain_serve_larger_blocks_and_coarser_ones_none(sharing):
    w = sharing(policy(), key_tokens=2)
    w.join(block_tokens=4)
    for request in (0, 1):
        w.ask(request, words(11), output=6)
        w.drain()
    assert w.computed() == 11 + 5 + 1 + 5
    w = sharing(policy(), key_tokens=8)
    w.join(block_tokens=4)
    for request in (0, 1):
        w.ask(request, words(11), output=1)
        w.drain()
    assert w.computed() == 22


def test_keys_that_do_not_fit_the_prompt_are_an_error_of_the_caller(sharing):
    w = sharing(policy())
    with pytest.raises(ValueError, match="16 bytes of keys for a prompt of 8 tokens"):
        w.ask(0, words(8), prompt_keys=bytes(16))


MERGED = b"""version: 1
name: t
classes: [{name: paid, ttft_s: 1, tbt_s: 0.1}, {name: free, ttft_s: 5, tbt_s: 0.5}]
batching:
  token_budget: 11
  max_sequences: 7
  stages:
    - prefill: {from: [started, waiting], merge: true, order: [class_priority, prompt_tokens]}
    - decode:  {order: [arrival]}
preemption: {victim: [newest_started_prefill, newest, self]}
"""
WHOLE = b"""version: 1
name: t
classes: [{name: paid, ttft_s: 1, tbt_s: 0.1}, {name: free, ttft_s: 5, tbt_s: 0.5}]
batching:
  token_budget: 64
  max_sequences: 7
  stages:
    - prefill: {from: waiting, chunked: false, exclusive: true}
    - decode:  {order: [arrival]}
kv: {share: all, admit: max_length}
"""
POLICIES = (policy(budget=9), policy("all", budget=64), policy("none"), MERGED, WHOLE)


def test_whatever_happens_everybody_ends_and_reads_its_own_tokens_alone(sharing):
    @settings(max_examples=60, deadline=None)
    @given(
        seed=st.integers(0, 2**32),
        first=st.integers(0, len(POLICIES) - 1),
        num_blocks=st.sampled_from([20, 34, 200]),
        in_flight=st.sampled_from([1, 2]),
        shape=st.sampled_from([(4, 4), (4, 2), (1, 1), (4, 8)]),
    )
    def check(seed, first, num_blocks, in_flight, shape):
        rng = random.Random(seed)  # noqa: S311  repeatable
        block_tokens, key_tokens = shape
        pool = {
            "num_blocks": num_blocks * 4 // block_tokens,
            "block_tokens": block_tokens,
            "max_steps_in_flight": in_flight,
        }
        w = sharing(POLICIES[first], key_tokens)
        w.join(0, **pool)
        w.join(1, **pool, copies_blocks=rng.random() < 0.8)
        num_requests = 0
        for _ in range(120):
            dice = rng.random()
            request = 4 * rng.randrange(num_requests + 1)
            if dice < 0.3:
                prompt = words(rng.randint(1, 30), 100 * rng.randrange(2)) + words(rng.randrange(6), rng.randrange(3))
                if num_requests and rng.random() < 0.3:  # the next turn of an earlier request
                    earlier = 4 * rng.randrange(num_requests)
                    prompt = w.texts.of(earlier, min(40, len(w.texts.prompts[earlier]) + rng.randrange(9))) + prompt[:9]
                options = {"gateway": rng.randrange(2), "slo_class": rng.choice(["paid", "free"])}
                options |= {"num_choices": rng.choice([1, 1, 1, 3]), "owner": rng.choice(["acme", "globex"])}
                if rng.random() < 0.1:
                    options |= {"prompt_keys": b"", "key_tokens": 0}
                w.ask(4 * num_requests, prompt[:50], output=rng.randint(1, 25), **options)
                num_requests += 1
            elif dice < 0.33:
                w.send(CancelRequested(request=request))
            elif dice < 0.35:
                w.send(StopFound(sequence=request, output_tokens=min(1, w.tokens.get(request, 0))))
            elif dice < 0.38:
                w.apply(rng.choice(POLICIES))
            elif dice < 0.39 and len(w.executors) > 1:
                w.lose(rng.choice(list(w.executors)))
            elif dice < 0.40 and len(w.executors) < 2:
                w.join(next(number for number in (0, 1) if number not in w.executors), **pool)
            elif dice < 0.42:
                w.send(rng.choice([GatewayStalled, GatewayResumed])(gateway=rng.randrange(2)))
            elif dice < 0.425:
                w.send(GatewayLost(gateway=rng.randrange(2)))
            elif dice < 0.44 and w.wake_at is not None:
                w.wake()
            elif busy := w.busy():
                executor = rng.choice(busy)
                ended = tuple(s for s in w.executors[executor].steps[0][1] if rng.random() < 0.02)
                w.end_step(executor, ended=ended)
        for gateway in (0, 1):
            w.send(GatewayResumed(gateway=gateway))
        w.drain()
        assert sorted(w.finished) == [4 * index for index in range(num_requests)]
        assert w.core.sequences == {}
        assert w.used_blocks() == 0
        assert all(fake.tables == {} for fake in w.executors.values())

    check()


@pytest.mark.parametrize("together", [False, True])
def test_nothing_that_a_tenant_can_see_depends_on_what_another_asked(sharing, together):
    """By counts, which decide the times: how much of its prompt each of its steps computes, and when they come."""
    seen = []
    for asked_before in (words(24), words(24, 100)):
        w = sharing(policy(budget=8))
        w.join()
        w.ask(0, asked_before, output=2, owner="acme")
        if not together:
            w.drain()
        w.ask(1, words(24), output=2, owner="globex")
        w.drain()
        seen.append([repr(each.plan) for each in w.plans])
        assert w.core.snapshot().num_prefix_hits == 0
        assert w.computed() == 2 * (24 + 1)
    assert seen[0] == seen[1]
