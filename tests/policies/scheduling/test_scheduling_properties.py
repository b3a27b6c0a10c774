"""Properties that policies promise (scheduling specification, section 7), through the core and fake executors."""

import random
from itertools import combinations, pairwise
from math import ceil, inf

import pytest

from policies.lifecycle import State
from policies.scheduling.orders import Line
from policies.scheduling.rules import UNLIMITED

HEAD = """version: 1
name: t
classes:
  - {name: paid, ttft_s: 0.5, tbt_s: PAID}
  - {name: free, ttft_s: 5.0, tbt_s: FREE}
"""
SLAI = """
batching:
  token_budget: 32
  max_sequences: 12
  max_decodes: 16
  stages:
    - decode:  {when: due, order: [last_schedulable_time, arrival]}
    - prefill: {from: started, order: [admission]}
    - prefill: {from: waiting, order: [arrival]}
    - decode:  {when: any, order: [last_schedulable_time, arrival]}
deadlines: {step_time: STEP_TIME, offset_steps: {below: 2, above: 6, kv_threshold: 0.5}}
preemption: {victim: [newest, self]}
"""
SARATHI = """
batching:
  token_budget: 32
  max_sequences: 12
  max_decodes: 16
  stages:
    - decode:  {when: any, order: [arrival]}
    - prefill: {from: started, order: [admission]}
    - prefill: {from: waiting, order: [arrival]}
preemption: {victim: [newest, self]}
"""


def document(batching, *, paid=0.1, free=0.5, step_time="mean"):
    head = HEAD.replace("PAID", str(paid)).replace("FREE", str(free))
    return (head + batching.replace("STEP_TIME", step_time)).encode()


def requests(seed, count=40):
    """(prompt, output, class, steps that end before the next one) of a random workload."""
    draw = random.Random(seed)  # noqa: S311  repeatable
    return [
        (draw.randint(1, 90), draw.randint(1, 25), draw.choice(["paid", "free", "free"]), draw.randint(0, 6))
        for _ in range(count)
    ]


def play(w, workload, each_step, *, seed=0):
    """Release a workload; `each_step(w)` is called after every step that ended."""
    draw = random.Random(seed)  # noqa: S311  repeatable

    def step():
        if w.busy():
            w.end_step(step_s=draw.choice([0.005, 0.01, 0.02, 0.03]))
            each_step(w)

    for number, (prompt, output, slo_class, ends) in enumerate(workload):
        w.release(number, prompt=prompt, output=output, slo_class=slo_class)
        for _ in range(ends):
            step()
    while w.busy():
        step()
    assert len(w.finished) == len(workload)


def rows(command):
    return sorted(zip(command.plan.sequences.tolist(), command.plan.num_tokens.tolist(), strict=True))


@pytest.mark.parametrize("steps_in_flight", [1, 2])
@pytest.mark.parametrize("num_blocks", [40, 1000])
def test_slai_without_slack_is_sarathi_step_by_step(world, num_blocks, steps_in_flight):
    plans = []
    for batching in (SLAI, SARATHI):
        w = world(document(batching, paid=0, free=0))
        w.join(num_blocks=num_blocks, block_tokens=4, max_steps_in_flight=steps_in_flight)
        play(w, requests(3), lambda w: None)
        plans.append([rows(command) for command in w.plans])
        assert (num_blocks == 40) == (w.core.snapshot().num_preemptions > 0)
    assert plans[0] == plans[1]


@pytest.mark.parametrize("step_time", ["mean", "{ewma: 0.3}"])
def test_every_deadline_of_every_class_follows_the_formula(world, step_time):
    w = world(document(SLAI, step_time=step_time))
    w.join(num_blocks=60, block_tokens=4, max_steps_in_flight=1)
    executor = w.core.executors[0]
    thetas, times, estimate = set(), [], 0.0
    end_step = w.end_step

    def checked_end_step(**options):
        nonlocal estimate
        ended = executor.steps[0].arms.tolist()
        holders = [executor.columns.sequences[slot] for slot in ended]
        use = executor.blocks.use
        end_step(**options)
        times.append(options["step_s"])
        if step_time == "mean" or len(times) == 1:
            estimate = sum(times) / len(times)
        else:
            estimate += 0.3 * (times[-1] - estimate)
        theta = 6 if use >= 0.5 else 2
        for sequence in holders:
            if sequence is not None and sequence.life.state is State.DECODE and sequence.slot in ended:
                tbt_s = {"paid": 0.1, "free": 0.5}[sequence.slo_class]
                deadline = executor.columns.deadline_s[sequence.slot]
                assert deadline == pytest.approx(w.now + tbt_s - theta * estimate, abs=1e-12)
                thetas.add((theta, sequence.slo_class))

    w.end_step = checked_end_step
    play(w, requests(5), lambda w: None)
    assert thetas == {(2, "paid"), (2, "free"), (6, "paid"), (6, "free")}


def test_a_class_whose_tbt_is_within_theta_steps_decodes_in_every_step(world):
    w = world(document(SLAI, paid=0.001, free=60))
    w.join(num_blocks=1000, block_tokens=4, max_steps_in_flight=1)
    deferred = set()

    def look(w):
        executor = w.core.executors[0]
        if not executor.steps:
            return
        planned = executor.steps[0].slots.tolist()
        for sequence in executor.holders():
            if sequence.life.state is State.DECODE and sequence.slot not in planned:
                deferred.add(sequence.slo_class)

    play(w, requests(7), look)
    assert deferred == {"free"}


# With two steps in flight a plan starts one step later than it is made, so the bound has one step more.
@pytest.mark.parametrize(("steps_in_flight", "longest_steps"), [(1, 2), (2, 3)])
def test_without_preemption_no_gap_is_longer_than_its_slack_and_the_steps_around_it(
    world, steps_in_flight, longest_steps
):
    w = world(document(SLAI, paid=0.08, free=0.15))
    w.join(num_blocks=3000, block_tokens=4, max_steps_in_flight=steps_in_flight)
    slack_after = {}

    def look(w):
        estimate_s = w.core.executors[0].step_time.estimate_s
        slack_after[w.now] = {"paid": max(0.0, 0.08 - 2 * estimate_s), "free": max(0.0, 0.15 - 2 * estimate_s)}

    workload = [(8 * prompt, output, slo_class, ends) for prompt, output, slo_class, ends in requests(11)]
    play(w, workload, look)
    gaps = [
        (later - earlier, slack_after[earlier][workload[sequence][2]])
        for sequence, times in w.token_times.items()
        for earlier, later in pairwise(times)
    ]
    assert w.core.snapshot().num_preemptions == 0
    assert max(gap - slack for gap, slack in gaps) <= longest_steps * 0.03 + 1e-9
    assert sum(gap >= slack > 0.1 for gap, slack in gaps) > 50, "hardly anything was deferred"


@pytest.mark.parametrize("batching", [SLAI, SARATHI])
@pytest.mark.parametrize("num_blocks", [40, 1000])
def test_a_step_that_is_not_full_leaves_out_only_what_is_barred(world, batching, num_blocks):
    w = world(document(batching))
    w.join(num_blocks=num_blocks, block_tokens=4, max_steps_in_flight=1)
    executor = w.core.executors[0]
    not_full = 0

    def look(w):
        nonlocal not_full
        if not executor.steps or executor.steps[0].num_tokens == executor.rules.token_budget:
            return
        not_full += 1
        planned = executor.steps[0].slots.tolist()
        left_out = [s for s in executor.holders() if s.slot not in planned and s.life.state is not State.ENDING]
        assert not left_out
        if head := executor.waiting.first(Line(("arrival",), UNLIMITED), -inf):
            need = ceil(head.tokens_to_prefill / 4)
            full = executor.num_holders == executor.rules.max_sequences
            barred = head.life.story[-1][0] == w.now  # preempted by this very plan
            assert full or barred or executor.blocks.num_free - need < executor.watermark_blocks

    play(w, requests(13), look)
    assert not_full > 10


def test_with_max_length_a_sequence_takes_all_its_blocks_at_once_and_nobody_is_preempted(world):
    batching = SARATHI + "kv: {admit: max_length, watermark: 0}\n"
    w = world(document(batching))
    w.join(num_blocks=60, block_tokens=4)
    play(w, requests(17), lambda w: None)
    assert w.core.snapshot().num_preemptions == 0
    sizes = {number: ceil((prompt + output) / 4) for number, (prompt, output, _, _) in enumerate(requests(17))}
    taken = {}
    for command in w.plans:
        plan = command.plan
        for sequence, count in zip(plan.sequences.tolist(), plan.num_new_blocks.tolist(), strict=True):
            taken.setdefault(sequence, []).append(count)
    assert {sequence: counts[0] for sequence, counts in taken.items()} == sizes
    assert all(sum(counts) == counts[0] for counts in taken.values())


REQUEST_LEVEL = """
batching:
  token_budget: none
  max_sequences: 8
  max_decodes: 8
  stages:
    - decode:  {when: any, order: [arrival], exclusive: true}
    - prefill: {from: waiting, chunked: false, order: [arrival]}
kv: {admit: max_length, watermark: 0}
preemption: {victim: [self]}
"""


@pytest.mark.parametrize("mixed", [False, True])
def test_without_a_token_budget_prompts_run_whole_beside_decodes_or_only_when_there_are_none(world, mixed):
    w = world(document(REQUEST_LEVEL.replace(", exclusive: true", "") if mixed else REQUEST_LEVEL))
    w.join(num_blocks=200, block_tokens=4, max_steps_in_flight=1)
    workload = requests(19)
    play(w, workload, lambda w: None)
    kinds = set()
    for command in w.plans:
        plan = command.plan
        for sequence, position, num_tokens in zip(
            plan.sequences.tolist(), plan.positions.tolist(), plan.num_tokens.tolist(), strict=True
        ):
            assert num_tokens == (workload[sequence][0] if position == 0 else 1)
        kinds.add(tuple(sorted({bool(position) for position in plan.positions.tolist()})))
    assert ((False, True) in kinds) == mixed


TILE = 8
RAD = """
batching:
  token_budget: 8
  max_sequences: 8
  max_decodes: 8
  stages:
    - decode:  {if: {decoding: {at_least: 8}}, when: any, order: [admission], exclusive: true}
    - prefill: {from: [started, waiting], chunk: 8, max_sequences: 1, order: [arrival], exclusive: true}
    - decode:  {when: any, order: [admission]}
preemption: {victim: [newest_started_prefill, newest_decode]}
"""


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_rad_never_decodes_more_than_a_tile_and_fills_every_tile_it_can(world, steps_in_flight):
    w = world(document(RAD))
    w.join(num_blocks=1000, block_tokens=4, max_steps_in_flight=steps_in_flight)
    executor = w.core.executors[0]
    sizes = []

    def look(w):
        decoding = [s for s in executor.holders() if s.life.state is State.DECODE]
        assert len(decoding) <= TILE
        if steps_in_flight == 1 and executor.steps:
            size = executor.steps[0].num_tokens
            sizes.append(size)
            if size < TILE:
                assert not executor.started
                assert not executor.waiting or executor.num_holders == TILE

    workload = [(TILE * ceil(prompt / TILE), output, name, ends) for prompt, output, name, ends in requests(23)]
    play(w, workload, look)
    assert steps_in_flight == 2 or sizes.count(TILE) > 50


def test_class_priority_starts_the_important_before_the_earlier(world):
    batching = SARATHI.replace("{from: waiting, order: [arrival]}", "{from: waiting, order: [class_priority, arrival]}")
    w = world(document(batching))
    w.join(max_steps_in_flight=1)
    for request, slo_class in enumerate(["free", "free", "paid", "free", "paid"]):
        w.release(request, prompt=40, output=2, slo_class=slo_class)
    w.drain()
    starts = [sequence for command in w.plans for sequence in command.plan.starts]
    assert starts == [0, 2, 4, 1, 3]


@pytest.mark.parametrize("sources", ["waiting", "[started, waiting], merge: true"])
def test_nobody_starts_before_one_who_came_aging_s_earlier(world, sources):
    batching = f"""
batching:
  token_budget: 24
  max_sequences: 6
  aging_s: 0.5
  stages:
    - prefill: {{from: started, order: [aged, remaining_prompt_tokens], max_sequences: 1}}
    - prefill: {{from: {sources}, order: [aged, remaining_prompt_tokens]}}
    - decode:  {{when: any, order: [aged, arrival]}}
"""
    w = world(document(batching))
    w.join(num_blocks=1000, block_tokens=4)
    arrived, started, overtaken = {}, {}, 0
    draw = random.Random(29)  # noqa: S311  repeatable
    for number, (prompt, output, slo_class, ends) in enumerate(requests(29, count=80)):
        arrived[number] = w.now
        w.release(number, prompt=prompt, output=output, slo_class=slo_class)
        for _ in range(ends // 2):
            w.end_step(step_s=draw.choice([0.005, 0.03]))
    w.drain()
    for place, command in enumerate(w.plans):
        started |= {sequence: (place, row) for row, sequence in enumerate(command.plan.starts)}
    for one, other in combinations(range(80), 2):
        if arrived[other] >= arrived[one] + 0.5 + 1e-9:
            assert started[one] < started[other]
        overtaken += started[other] < started[one]
    assert w.core.snapshot().num_preemptions == 0
    assert overtaken > 20, "the shortest hardly ever went first"


def test_the_least_left_of_a_prompt_goes_first_though_it_began_as_the_longest(world):
    batching = """
batching:
  token_budget: 40
  stages:
    - prefill: {from: [started, waiting], merge: true, order: [remaining_prompt_tokens]}
    - decode:  {when: any, order: [arrival]}
"""
    w = world(document(batching))
    w.join(max_steps_in_flight=1)
    w.release(0, prompt=100, output=1)
    w.release(1, prompt=60, output=1)
    w.release(2, prompt=5, output=1)
    w.drain()
    # 0 has run 40 of its 100 tokens when the others come; 2 is the least; 0 then ties with 1 and is older.
    prompts = [rows(command) for command in w.plans]
    assert prompts == [[(0, 40)], [(0, 35), (2, 5)], [(0, 25), (1, 15)], [(1, 40)], [(1, 5)]]


def test_with_next_decode_a_finished_prompt_waits_for_its_deadline_before_its_first_token(world):
    w = world(document(SLAI, free=60), first_token="next_decode")
    w.join(max_steps_in_flight=1)
    w.release(0, prompt=8, output=2)
    w.release(1, prompt=224, output=2)
    w.end_step()
    w.end_step()
    assert w.tokens == {}
    w.drain()
    assert w.tokens == {0: 2, 1: 2}
    first, second = w.token_times[0][0], w.token_times[1][0]
    assert first == second, "nobody was due, so both were decoded once no prompt was left"
