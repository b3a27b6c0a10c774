"""The properties that the published schedulers promise (scheduling specification, section 7), of the files that ship.

Each file is scaled down sixteenfold, so that a few short requests meet every limit. P13 (stability) is tested where the
theory's machine is, in simulation/experiments/test_rad.py; P14 (repeatability) in test_scheduling_random.py.
"""

import random
import re
from itertools import pairwise, permutations
from math import ceil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.events import CancelRequested
from policies.lifecycle import State
from policies.scheduling.rules import UNLIMITED

POLICIES = Path(__file__).resolve().parents[3] / "policies"
LIVE = sorted({path.stem for path in POLICIES.glob("*.yaml")} - {"tenants", "hindsight"})
SARATHI = tuple(name for name in LIVE if name.startswith("sarathi"))
SLAI = tuple(name for name in LIVE if name.startswith("slai"))
RAD = tuple(name for name in LIVE if name.startswith("rad"))
IN_FLIGHT = pytest.mark.parametrize("steps_in_flight", [1, 2])
SIZES = re.compile(r"(token_budget|max_sequences|max_decodes|at_least|chunk|tile): (\d+)")
TILE = 8
COLUMN_S, TOKEN_S = 4e-3, 5e-6
BLOCK_TOKENS = 4


def scaled(name: str) -> bytes:
    text = (POLICIES / f"{name}.yaml").read_text()
    return SIZES.sub(lambda size: f"{size[1]}: {min(int(size[2]), max(2, int(size[2]) // 16))}", text).encode()


def workloads(**limits):
    """Lists of (prompt, output, class, steps that end before the next one, cancelled meanwhile)."""
    request = st.tuples(
        st.integers(1, limits.get("prompt", 90)),
        st.integers(1, 20),
        st.sampled_from(["paid", "free"]),
        st.integers(0, 4),
        st.sampled_from([False] * 9 + [limits.get("cancels", False)]),
    )
    return st.lists(request, min_size=3, max_size=24)


def holds(num_examples):
    """Hypothesis, without its clock; the fixture is a class."""
    options = {"max_examples": num_examples, "deadline": None, "derandomize": True}
    return settings(**options, suppress_health_check=[HealthCheck.function_scoped_fixture])


def play(w, workload, look=lambda w, planned: None, step_s=None):
    """Release a workload and run it to its end. `look(w, planned)` is called after every event, `planned`: it led to a
    new plan.
    """
    draw = random.Random(len(workload))  # noqa: S311  repeatable
    send, planned = w.send, 0

    def seen(event):
        nonlocal planned
        commands = send(event)
        look(w, len(w.plans) > planned)
        planned = len(w.plans)
        return commands

    w.send = seen

    def step():
        if w.busy():
            plan = w.executors[0].steps[0][0].plan
            w.end_step(step_s=step_s(plan) if step_s else draw.choice([0.005, 0.01, 0.02, 0.03]))

    for number, (prompt, output, slo_class, ends, cancelled) in enumerate(workload):
        w.release(number, prompt=prompt, output=output, slo_class=slo_class)
        for _ in range(ends):
            step()
        if cancelled:
            w.send(CancelRequested(request=number))
    while w.busy():
        step()
    assert sorted(w.finished) == list(range(len(workload)))


class Limits:
    """P1: reads every plan as it is made and holds it against the policy."""

    def __init__(self, workload):
        self.prompts = [request[0] for request in workload]
        self.seen = 0
        self.unfilled = {}

    def __call__(self, w, planned):
        executor = w.core.executors[0]
        rules = executor.rules
        assert executor.num_holders <= rules.max_sequences
        for command in w.plans[self.seen :]:
            plan = command.plan
            for sequence in plan.starts:
                self.unfilled[sequence] = self.prompts[sequence] + w.tokens.get(sequence, 0)
            decodes = 0
            for sequence, count in zip(plan.sequences.tolist(), plan.num_tokens.tolist(), strict=True):
                if self.unfilled[sequence]:
                    self.unfilled[sequence] -= count
                else:
                    decodes += 1
            assert min(self.unfilled.values()) >= 0
            assert decodes <= rules.max_decodes
            assert rules.token_budget == UNLIMITED or plan.num_tokens.sum() <= rules.token_budget
        self.seen = len(w.plans)


@pytest.mark.parametrize("name", LIVE)
@IN_FLIGHT
@holds(8)
@given(workload=workloads(prompt=150, cancels=True), num_blocks=st.sampled_from([32, 400]))
def test_p1_p7_p8_limits_hold_everybody_ends_and_gets_exactly_its_tokens(
    world, name, steps_in_flight, workload, num_blocks
):
    # The files allow as many decodes as sequences, so that limit would never bind.
    w = world(re.sub(rb"max_decodes: \d+", b"max_decodes: 2", scaled(name)))
    w.join(num_blocks=num_blocks, block_tokens=BLOCK_TOKENS, max_steps_in_flight=steps_in_flight)
    play(w, workload, Limits(workload))
    assert w.used_blocks() == 0
    assert w.executors[0].tables == {}
    for number, (prompt, output, *_, cancelled) in enumerate(workload):
        if not cancelled:
            refused = ceil((prompt + output) / BLOCK_TOKENS) > num_blocks - w.core.executors[0].watermark_blocks
            assert w.finished[number].outcome == ("refused" if refused else "finished")
            assert w.tokens.get(number, 0) == (0 if refused else output)


@pytest.mark.parametrize("name", [*SARATHI, *SLAI])
@IN_FLIGHT
@holds(8)
@given(workload=workloads(cancels=True), num_blocks=st.sampled_from([32, 400]))
def test_p2_at_most_one_prompt_is_half_computed(world, name, steps_in_flight, workload, num_blocks):
    w = world(scaled(name))
    w.join(num_blocks=num_blocks, block_tokens=BLOCK_TOKENS, max_steps_in_flight=steps_in_flight)

    def look(w, planned):
        assert len(w.core.executors[0].started) <= 1

    play(w, workload, look)


@pytest.mark.parametrize(
    "pair", [("sarathi", "slai_fcfs_fixed"), ("sarathi_spf", "slai_spf_fixed"), ("sarathi_spf", "slai")]
)
@IN_FLIGHT
@holds(8)
@given(workload=workloads(), num_blocks=st.sampled_from([32, 400]))
def test_p3_slai_without_slack_is_sarathi(world, pair, steps_in_flight, workload, num_blocks):
    plans = []
    for name in pair:
        text = re.sub(rb"tbt_s: [0-9.]+", b"tbt_s: 0", scaled(name))
        w = world(re.sub(rb"victim: \[.*\]", b"victim: [newest, self]", text))
        w.join(num_blocks=num_blocks, block_tokens=BLOCK_TOKENS, max_steps_in_flight=steps_in_flight)
        play(w, workload)
        rows = [zip(c.plan.sequences.tolist(), c.plan.num_tokens.tolist(), strict=True) for c in w.plans]
        plans.append([sorted(row) for row in rows])
    assert plans[0] == plans[1]


@pytest.mark.parametrize("name", SLAI)
@holds(8)
@given(workload=workloads(), num_blocks=st.sampled_from([32, 400]))
def test_p4_deadlines_follow_the_formula_and_nobody_due_is_left_out(world, name, workload, num_blocks):
    w = world(scaled(name))
    w.join(num_blocks=num_blocks, block_tokens=BLOCK_TOKENS, max_steps_in_flight=1)
    executor = w.core.executors[0]
    rules, columns = executor.rules, executor.columns
    end_step, times = w.end_step, []

    def checked_end_step(step_s):
        armed = [columns.sequences[slot] for slot in executor.steps[0].arms.tolist()]
        theta = rules.offsets.theta(executor.blocks.use)
        end_step(step_s=step_s)
        times.append(step_s)
        mean_s = sum(times) / len(times)
        for sequence in armed:
            if sequence is not None and sequence.life.state is State.DECODE:
                tbt_s = {"paid": 0.1, "free": 0.5}[sequence.slo_class]
                assert columns.deadline_s[sequence.slot] == pytest.approx(w.now + tbt_s - theta * mean_s, abs=1e-12)

    def look(w, planned):
        if planned:
            slots = executor.steps[0].slots.tolist()
            for sequence in executor.holders():
                if sequence.life.state is State.DECODE and sequence.slot not in slots:
                    assert columns.deadline_s[sequence.slot] > w.now

    w.end_step = checked_end_step
    play(w, workload, look)


@pytest.mark.parametrize("name", SLAI)
@pytest.mark.parametrize(("steps_in_flight", "longest_steps"), [(1, 2), (2, 3)])
@holds(8)
@given(workload=workloads(prompt=400))
def test_p5_no_gap_is_longer_than_its_slack_and_the_steps_around_it(
    world, name, steps_in_flight, longest_steps, workload
):
    w = world(scaled(name))
    w.join(num_blocks=4000, block_tokens=BLOCK_TOKENS, max_steps_in_flight=steps_in_flight)
    executor = w.core.executors[0]
    slack_after = {}

    def look(w, planned):
        offset_s = executor.rules.offsets.below * executor.step_time.estimate_s
        slack_after[w.now] = {"paid": max(0.0, 0.1 - offset_s), "free": max(0.0, 0.5 - offset_s)}

    play(w, workload, look)
    assert w.core.snapshot().num_preemptions == 0
    for sequence, times in w.token_times.items():
        for earlier, later in pairwise(times):
            assert later - earlier <= slack_after[earlier][workload[sequence][2]] + longest_steps * 0.03 + 1e-9


@pytest.mark.parametrize("name", [*SARATHI, *SLAI])
@holds(8)
@given(workload=workloads(), num_blocks=st.sampled_from([32, 400]))
def test_p6_a_step_that_is_not_full_leaves_out_only_what_is_barred(world, name, workload, num_blocks):
    w = world(scaled(name))
    w.join(num_blocks=num_blocks, block_tokens=BLOCK_TOKENS, max_steps_in_flight=1)
    executor = w.core.executors[0]
    rules = executor.rules
    (line,) = rules.waiting_lines()

    def look(w, planned):
        if not planned or executor.steps[0].num_tokens == rules.token_budget:
            return
        slots = executor.steps[0].slots.tolist()
        assert all(s.slot in slots or s.life.state is State.ENDING for s in executor.holders())
        if head := executor.waiting.first(line, w.now):
            need = ceil(head.tokens_to_prefill / BLOCK_TOKENS)
            preempted_now = head.resumed and head.life.story[-1][0] == w.now
            short = executor.blocks.num_free - need < executor.watermark_blocks
            assert preempted_now or short or executor.num_holders == rules.max_sequences

    play(w, workload, look)


AGED = [
    (name, scaled(name))
    for name in LIVE
    if re.search(rb"from: waiting.*order: \[aged", scaled(name))
    or re.search(rb"merge: true.*order: \[aged", scaled(name))
] + [
    (
        "slai, aged",
        scaled("slai")
        .replace(b"[prompt_tokens]", b"[aged, prompt_tokens]")
        .replace(b"batching:\n", b"batching:\n  aging_s: 0.1\n"),
    )
]


@pytest.mark.parametrize("document", [document for _, document in AGED], ids=[name for name, _ in AGED])
@IN_FLIGHT
@holds(20)
@given(workload=workloads())
def test_p9_who_waited_long_enough_starts_before_all_that_came_so_much_later(
    world, document, steps_in_flight, workload
):
    w = world(document)
    w.join(num_blocks=4000, block_tokens=BLOCK_TOKENS, max_steps_in_flight=steps_in_flight)
    arrived, release = {}, w.release

    def noted(request, **options):
        arrived[request] = w.now
        return release(request, **options)

    w.release = noted
    play(w, workload)
    starts = [sequence for command in w.plans for sequence in command.plan.starts]
    place = {sequence: index for index, sequence in enumerate(starts)}
    aging_s = w.core.rules.aging_s
    for (earlier, first_s), (later, then_s) in permutations(arrived.items(), 2):
        if then_s >= first_s + aging_s:
            assert place[earlier] < place[later]


@pytest.mark.parametrize("name", RAD)
@IN_FLIGHT
@holds(10)
@given(workload=workloads(cancels=True), num_blocks=st.sampled_from([32, 400]))
def test_p10_rad_never_decodes_more_than_a_tile(world, name, steps_in_flight, workload, num_blocks):
    w = world(scaled(name))
    w.join(num_blocks=num_blocks, block_tokens=BLOCK_TOKENS, max_steps_in_flight=steps_in_flight)

    def look(w, planned):
        assert sum(s.life.state is State.DECODE for s in w.core.executors[0].holders()) <= TILE

    play(w, workload, look)


@holds(30)
@given(workload=workloads(prompt=12))
def test_p10_p11_on_whole_tiles_rad_wastes_a_step_only_for_want_of_work_and_a_full_one_does_a_tile_of_it(
    world, workload
):
    w = world(scaled("rad"), first_token="next_decode")
    w.join(num_blocks=4000, block_tokens=BLOCK_TOKENS, max_steps_in_flight=1)
    executor = w.core.executors[0]
    in_tiles = [(TILE * prompt, output, *rest) for prompt, output, *rest in workload]

    def look(w, planned):
        if planned and executor.steps[0].num_tokens < TILE:
            assert not executor.started
            assert not executor.waiting
            assert executor.num_holders < TILE

    play(w, in_tiles, look)
    work = sum(prompt + output for prompt, output, *_ in in_tiles)
    assert sum(int(command.plan.num_tokens.sum()) for command in w.plans) == work, "a full step did less than a tile"


def test_p10_is_tested_where_tiles_are_full(world):
    w = world(scaled("rad"))
    w.join(num_blocks=4000, block_tokens=BLOCK_TOKENS, max_steps_in_flight=1)
    play(w, [(16, 15, "free", 0, False)] * 20)
    decodes = [len(c.plan.sequences) for c in w.plans if (c.plan.num_tokens == 1).all()]
    assert decodes.count(TILE) > 20


@pytest.mark.parametrize("name", LIVE)
@holds(8)
@given(workload=workloads(), num_blocks=st.sampled_from([32, 400]))
def test_p12_nobody_serves_more_than_full_tiles_would(world, name, workload, num_blocks):
    w = world(scaled(name))
    w.join(num_blocks=num_blocks, block_tokens=BLOCK_TOKENS, max_steps_in_flight=1)

    def step_s(plan):
        num_tokens = int(plan.num_tokens.sum())
        return ceil(num_tokens / TILE) * COLUMN_S + num_tokens * TOKEN_S

    def look(w, planned):
        # The last piece of a prompt makes the first output token; nothing that is computed again counts.
        served = sum(workload[number][0] + count - 1 for number, count in w.tokens.items())
        assert served * (COLUMN_S + TILE * TOKEN_S) <= TILE * w.now * (1 + 1e-9)

    play(w, workload, look, step_s)
