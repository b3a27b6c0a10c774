"""Events in, commands out: the promises of the scheduler core one by one."""

import pytest

from policies.commands import Deliver, Finish, FinishReason, Forget, StartStep
from policies.events import CancelRequested, GatewayResumed, GatewayStalled, StepEnded, StopFound
from policies.lifecycle import Happening, InvalidTransition, Life


def of(kind, commands):
    return [command for command in commands if isinstance(command, kind)]


def test_a_request_longer_than_the_model_is_refused_with_both_numbers(world):
    w = world()
    w.join(max_sequence_tokens=100)
    (finish,) = of(Finish, w.release(1, prompt=90, output=20))
    assert (finish.outcome, finish.code) == ("refused", "context_length_exceeded")
    assert "90 prompt + 20 output tokens are longer than the 100 tokens the model allows" in finish.message


def test_a_request_that_never_fits_the_pool_is_refused(world):
    w = world()
    w.join(num_blocks=4, block_tokens=16)
    (finish,) = of(Finish, w.release(1, prompt=60, output=20))
    assert "more KV memory than one executor has (64 tokens)" in finish.message


def test_a_prompt_that_an_uncut_step_cannot_hold_is_refused(world):
    w = world("vllm")
    w.join(num_blocks=1000, max_sequence_tokens=16_000)
    (finish,) = of(Finish, w.release(1, prompt=9000, output=1))
    assert "does not fit a step of 8192 tokens" in finish.message


def test_a_cancel_frees_its_blocks_for_the_next_plan_and_its_tokens_reach_nobody(world):
    w = world()
    w.join()
    w.release(1, prompt=10, output=100)
    w.release(2, prompt=10, output=100)
    w.end_step()
    used = w.used_blocks()
    (finish,) = of(Finish, w.send(CancelRequested(request=1)))
    assert (finish.outcome, finish.output_tokens) == ("cancelled", w.tokens.get(1, 0))
    assert w.used_blocks() == used - 1
    before = dict(w.tokens)
    (plan,) = of(StartStep, w.end_step())
    assert plan.plan.released == [1]
    w.end_step()
    assert w.tokens.get(1) == before.get(1)
    assert w.send(CancelRequested(request=1)) == []


def test_when_nothing_is_left_to_run_the_executor_is_told_to_forget(world):
    w = world()
    w.join(max_steps_in_flight=1)
    w.release(1, prompt=10, output=1)
    commands = w.end_step()
    assert of(Forget, commands) == [Forget(executor=0, released=[1])]
    assert of(Finish, commands)[0].output_tokens == 1


def test_an_end_of_sequence_wastes_one_row_and_delivers_none_of_it(world):
    w = world()
    w.join()
    w.release(1, prompt=10, output=50)
    (delivered,) = of(Deliver, w.end_step(ended=(1,)))
    assert delivered.finish.tolist() == [FinishReason.STOP]
    assert w.finished[1].output_tokens == 1
    assert of(Deliver, w.end_step()) == []


def test_a_stop_string_counts_what_the_reader_got(world):
    w = world()
    w.join()
    w.release(1, prompt=10, output=50)
    for _ in range(5):
        w.end_step()
    (finish,) = of(Finish, w.send(StopFound(sequence=1, output_tokens=3)))
    assert (finish.outcome, finish.output_tokens) == ("finished", 3)


def test_a_stop_string_counts_no_more_than_could_be_made(world):
    w = world()
    w.join()
    w.release(1, prompt=10, output=50, num_choices=2)
    for _ in range(5):
        w.end_step()
    w.send(StopFound(sequence=1, output_tokens=2**31 - 1))
    w.send(StopFound(sequence=1, output_tokens=2**31 - 1))
    (finish,) = of(Finish, w.send(StopFound(sequence=2, output_tokens=2**31 - 1)))
    assert finish.output_tokens == 100


def test_a_request_of_three_choices_finishes_once_with_all_their_tokens(world):
    w = world()
    w.join()
    w.release(8, prompt=10, output=5, num_choices=3)
    w.drain()
    assert w.tokens == {8: 5, 9: 5, 10: 5}
    assert w.finished[8].output_tokens == 15


def test_requests_wait_for_an_executor_and_survive_its_loss(world):
    w = world()
    w.release(1, prompt=100, output=10)
    assert w.plans == []
    w.join()
    for _ in range(4):
        w.end_step()
    w.lose(0)
    assert w.core.snapshot().num_waiting == 1
    w.join(3)
    w.drain()
    assert w.tokens == {1: 10}
    assert w.plans[-1].executor == 3


def test_sequences_go_to_the_executor_with_the_fewest_tokens(world):
    w = world()
    w.join(0)
    w.join(1)
    for request in range(4):
        w.release(request, prompt=100, output=10)
    assert [w.core.sequences[request].executor for request in range(4)] == [0, 1, 0, 1]


def test_a_gateway_that_does_not_read_is_left_out_then_cancelled(world):
    w = world()
    w.join()
    w.release(1, prompt=10, output=400, gateway=7)
    w.release(2, prompt=10, output=400, gateway=8)
    w.send(GatewayStalled(gateway=7))
    w.wake()
    assert w.now == pytest.approx(1.0)
    while w.busy() and 1 in w.plans[-1].plan.sequences:
        w.end_step()
    assert w.plans[-1].plan.sequences.tolist() == [2]
    finishes = of(Finish, w.wake())
    assert [(f.request, f.outcome, f.code) for f in finishes] == [(1, "cancelled", "slow_gateway")]


def test_what_comes_for_a_gateway_that_still_does_not_read_is_cancelled_too(world):
    w = world()
    w.join()
    w.send(GatewayStalled(gateway=7))
    w.wake()
    w.wake()
    w.release(1, prompt=8, output=5, gateway=7)
    w.wake()
    assert w.finished[1].code == "slow_gateway"
    assert w.now == 20.0
    w.send(GatewayResumed(gateway=7))
    w.release(2, prompt=8, output=5, gateway=7)
    w.drain()
    assert w.tokens[2] == 5


def test_a_gateway_that_reads_again_goes_on_where_it_was(world):
    w = world()
    w.join()
    w.release(1, prompt=10, output=20, gateway=7)
    w.send(GatewayStalled(gateway=7))
    w.wake()
    w.drain()
    assert w.tokens.get(1, 0) < 20
    w.send(GatewayResumed(gateway=7))
    w.drain()
    assert w.tokens[1] == 20


def test_a_half_done_prompt_is_carried_over_by_a_policy_that_cuts_none(world):
    w = world("sarathi")
    w.join(max_steps_in_flight=1)
    w.release(1, prompt=1200, output=3)
    w.end_step()
    w.apply("vllm")
    w.end_step()
    assert w.plans[-1].plan.stages.tolist() == [-1]
    w.drain()
    assert w.tokens == {1: 3}


@pytest.mark.parametrize("policy", ["sarathi", "slai"])
def test_at_most_one_prompt_is_half_done(world, policy):
    w = world(policy)
    w.join(max_steps_in_flight=1)
    for request in range(30):
        w.release(request, prompt=100 + 97 * request % 900, output=20)
    while w.busy():
        assert len(w.core.executors[0].started) <= 1
        w.end_step()


def test_deadlines_follow_the_formula_to_the_last_bit(world):
    w = world("slai")
    w.join(max_steps_in_flight=1)
    w.release(1, prompt=10, output=50, slo_class="free")
    durations = [0.03, 0.05, 0.04]
    for count, duration in enumerate(durations, start=1):
        w.end_step(step_s=duration)
        mean = sum(durations[:count]) / count
        columns = w.core.executors[0].columns
        assert columns.deadline_s[0] == pytest.approx(w.now + 0.5 - 5 * mean, abs=1e-12)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_failed_sequence_ends_its_request_with_the_reason_and_nobody_elses(world, in_flight):
    w = world()
    w.join(max_steps_in_flight=in_flight)
    w.release(10, prompt=20, output=8, num_choices=2)
    w.release(20, prompt=20, output=8)
    while w.tokens.get(11, 0) < 3:
        w.end_step()
    delivered = dict(w.tokens)
    w.end_step(failed={11: "the output cannot keep to its grammar", 999: "nobody"})
    finish = w.finished[10]
    assert (finish.outcome, finish.code) == ("error", "output_failed")
    assert finish.message == "the output cannot keep to its grammar"
    assert finish.output_tokens == delivered[10] + delivered[11]
    assert (w.tokens[10], w.tokens[11]) == (delivered[10], delivered[11])  # nothing of the step that failed
    w.drain()
    assert w.finished[20].outcome == "finished"
    assert w.tokens[20] == 8
    assert w.core.sequences == {}
    assert w.core.executors[0].blocks.num_free == 1000


def test_unknown_names_are_ignored(world):
    w = world()
    w.join()
    assert w.send(CancelRequested(request=5)) == []
    assert w.send(StopFound(sequence=5, output_tokens=1)) == []
    assert w.send(StepEnded(executor=0, step=99, step_time_s=0.1)) == []
    assert w.send(StepEnded(executor=4, step=1, step_time_s=0.1)) == []


def test_an_event_before_the_policy_says_what_is_missing():
    from policies.events import Released
    from policies.scheduling.core import SchedulerCore

    with pytest.raises(RuntimeError, match="needs a PolicyApplied"):
        SchedulerCore().handle(Released(request=1, slo_class="free", prompt_tokens=1, max_output_tokens=1), 0.0)


def test_an_illegal_happening_tells_the_whole_story():
    life = Life(5)
    life.pass_(Happening.RELEASED, 1.0, "free")
    with pytest.raises(
        InvalidTransition, match=r"sequence 5: 'preempted' .* 'waiting'; so far: 1.000000 released free"
    ):
        life.pass_(Happening.PREEMPTED, 2.0)


def test_a_random_router_gives_every_executor_its_share_and_the_same_again(world, shipped):
    def routes(seed):
        w = world(shipped("rad").replace(b"seed: 1", b"seed: %d" % seed))
        for executor in range(3):
            w.join(executor, num_blocks=20_000, max_sequence_tokens=1000 if executor else 500)
        for request in range(300):
            w.release(request, prompt=600 if request < 100 else 100, output=1)
        return [w.core.sequences[request].executor for request in range(300)]

    first = routes(1)
    assert routes(1) == first
    assert routes(2) != first
    assert set(first[:100]) == {1, 2}, "the first one is too small for these"
    assert all(50 < first[100:].count(executor) < 85 for executor in range(3))


def test_the_stage_of_a_row_says_whether_it_is_a_piece_of_a_prompt_however_short(world):
    w = world("sarathi")
    w.join(max_steps_in_flight=1)
    budget = w.core.rules.token_budget
    w.release(1, prompt=budget + 1, output=3)
    kinds = []
    while 1 not in w.finished:
        kinds.append(w.core.executors[0].decodes_of_stage[w.plans[-1].plan.stages].tolist())
        w.end_step()
    assert [plan.plan.num_tokens.tolist() for plan in w.plans] == [[budget], [1], [1], [1]]
    assert kinds == [[False], [False], [True], [True]]
