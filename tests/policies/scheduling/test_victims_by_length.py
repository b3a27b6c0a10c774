"""Whom A_min preempts, and whom the guards spare (prediction specification, sections 3.1, 8 and 10)."""

import numpy as np
import pytest

from policies.scheduling import core as core_module
from policies.scheduling.executor import Executor
from policies.scheduling.outlook import spared as executor_spared
from policies.scheduling.preemption import choose, itself, least_predicted_output
from policies.scheduling.state import Request, Sequence
from policies.simulation.experiments.amin import simulate
from policies.simulation.experiments.amin_settings import UNINFORMED, around, document


def victims_of_the_definition(executor):
    """Step 2 of the common step: who gives its memory back until what is held in this step fits."""
    columns = executor.columns
    running = []
    for slot in columns.all_open().tolist():
        sequence = columns.sequences[slot]
        produced = int(columns.position[slot]) - sequence.prompt_tokens + executor.samples_first
        held = sequence.prompt_tokens + produced + executor.columns.ahead
        running.append((max(sequence.estimate, produced), -sequence.number, held, sequence.id))
    need = sum(held for _, _, held, _ in running)
    gone = []
    for _, _, held, name in sorted(running):
        if need <= executor.blocks.num_blocks:
            break
        need -= held
        gone.append(name)
    return gone


@pytest.mark.parametrize("resume", ["keep_tokens", "restart"])
@pytest.mark.parametrize("convention", ["paper", "engine"])
@pytest.mark.parametrize("prediction", [UNINFORMED, around(0.9, "random")])
def test_the_planner_preempts_whom_the_definition_does(monkeypatch, prediction, convention, resume):  # T13
    compared = []
    preempted = []
    preempt = Executor.preempt

    def noted(executor, sequence, now):
        preempted.append(sequence.id)
        return preempt(executor, sequence, now)

    class Compared(core_module.Draft):
        def build(self):
            expected = victims_of_the_definition(self._executor)
            preempted.clear()
            super().build()
            assert sorted(preempted) == sorted(expected)
            compared.append(len(expected))

    monkeypatch.setattr(core_module, "Draft", Compared)
    monkeypatch.setattr(Executor, "preempt", noted)
    policy = document("amin", prediction).replace(b"convention: paper", b"convention: " + convention.encode())
    policy = policy.replace(b"resume: keep_tokens", b"resume: " + resume.encode())
    generator = np.random.default_rng(5)
    for _ in range(3):
        outputs = np.clip(np.rint(20 * np.exp(generator.standard_normal(60))), 1, 150).astype(int)
        simulate(policy, outputs, generator.integers(1, 20, 60), 300, longest=150)
    assert sum(compared) > 20
    assert len(compared) > 500


def guarded(**options):
    policy = document("amin_guarded", UNINFORMED).decode()
    for name, value in options.items():
        policy = policy.replace(f"{name}: 1000", f"{name}: {value}").replace(f"{name}: 4", f"{name}: {value}")
    return policy.encode()


def test_who_is_protected_gives_its_blocks_back_only_when_nobody_else_can(monkeypatch):  # T8
    preempt = Executor.preempt
    num_protected = 0

    def noted(executor, sequence, now):
        nonlocal num_protected
        spared = executor_spared(executor)
        num_protected += len(spared) > 1
        if sequence.slot in spared:
            planned = {slot for slots in current[-1] for slot in slots}
            others = [s for s in executor.holders() if s.slot not in planned and s.slot not in spared]
            assert not others
        return preempt(executor, sequence, now)

    current = []

    class Watched(core_module.Draft):
        def build(self):
            current.append(_Slots(self))
            super().build()

    monkeypatch.setattr(core_module, "Draft", Watched)
    monkeypatch.setattr(Executor, "preempt", noted)
    generator = np.random.default_rng(1)
    outputs = np.clip(np.rint(30 * np.exp(generator.standard_normal(150))), 1, 300).astype(int)
    options = {"arrivals": np.cumsum(generator.exponential(1.0, 150)), "longest": 300, "check": True}
    policy = guarded(max_per_sequence=1).replace(b"sequence: 1", b"sequence: 1, protected_share: 1.0")
    policy = policy.replace(b"upper: 1000", b"upper: 40")  # an upper bound that does not hold
    result = simulate(policy, outputs, np.full(150, 10), 500, **options)
    assert num_protected > 0
    assert not np.isnan(result.latency_s).any()


class _Slots:
    """The slots that a draft has planned so far, looked at when asked for."""

    def __init__(self, draft):
        self._draft = draft

    def __iter__(self):
        return iter([slots.tolist() for _, slots in self._draft.segments])


def test_of_the_spared_the_newest_goes_when_nobody_else_is_left():
    sequences = []
    for number in range(1, 4):
        request = Request(number, 0, 1)
        options = {"prompt_tokens": 1, "max_output_tokens": 9, "slo_class": "free"}
        sequence = Sequence(number, request, number=number, arrived_s=float(number), **options)
        sequence.slot = number
        sequences.append(sequence)
    old, middle, new = sequences
    rules = (least_predicted_output, itself)
    assert choose(rules, sequences, middle) is new  # of equal estimates the latest
    assert choose(rules, sequences, middle, {3: None}) is middle
    assert choose(rules, [middle, new], middle, {1: None, 2: None, 3: None}) is new
    assert choose(rules, [old], old, {1: None}) is old


def test_the_oldest_and_the_protected_are_spared_up_to_their_share(world):
    policy = (
        guarded(max_per_sequence=1, aging_s=1000000)
        .replace(b"max_per_sequence: 1", b"max_per_sequence: 1, protected_share: 0.5")
        .replace(b"name: all", b"name: free")
    )
    w = world(policy)
    w.join(num_blocks=64, block_tokens=1, max_steps_in_flight=1)
    for request in range(1, 7):
        w.release(request, prompt=8, output=24)
    w.drain()
    stories = w.core.snapshot()
    assert stories.num_preemptions > 0
    assert {finish.output_tokens for finish in w.finished.values()} == {24}
    first = min(w.token_times[request][-1] for request in w.finished)
    assert w.token_times[1][-1] == first  # the oldest never gives its blocks back


def test_a_policy_that_learns_lengths_replays_to_the_same_commands(world, shipped):  # T11
    def log(policy):
        w = world(shipped(policy))
        w.join(num_blocks=120, block_tokens=4, max_steps_in_flight=2)
        generator = np.random.default_rng(3)
        for request in range(150):
            w.release(request, prompt=int(generator.integers(1, 40)), output=int(generator.integers(1, 60)))
            for _ in range(int(generator.integers(0, 4))):
                if w.busy():
                    sampled = w.executors[0].steps[0][1]
                    w.end_step(ended=tuple(s for s in sampled if generator.random() < 0.05))
        w.drain()
        return w

    for policy in ("amin", "amax", "mcsf"):
        one, other = log(policy), log(policy)
        assert one.log == other.log
        coverage = one.core.snapshot().coverage
        assert coverage.num_observed == 150
        assert coverage.num_above_lower >= 120
