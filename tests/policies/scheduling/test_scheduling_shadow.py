from pathlib import Path
from typing import Any

import pytest

from policies.commands import Command, encode
from policies.scheduling.core import SchedulerCore
from policies.scheduling.shadow import (
    ADMISSION,
    CANDIDATE,
    CHUNK,
    DEFERRAL,
    LIVE,
    ORDER,
    PREEMPTION,
    Disagreement,
    Shadow,
    ShadowError,
    Tally,
    copy_of,
)
from policies.simulation.driver import SCHEDULER, Simulation
from policies.simulation.executor_model import Device, FloorLinear
from policies.simulation.workload import TraceRequest, synthetic

POLICIES = Path(__file__).resolve().parents[3] / "policies"
NAMES = sorted(path.stem for path in POLICIES.glob("*.yaml") if path.stem not in ("tenants", "hindsight"))
DEVICE = Device("small", 60, 16, 512, FloorLinear(0.02, 0.005, 2e-4, 1e-7))
BEGINS = 40
"""Events after which a shadow begins: in the middle of things."""


def policy(stages: str, budget: int = 64, more: str = "") -> bytes:
    return f"""
version: 1
name: made
classes: [{{name: paid, ttft_s: 1, tbt_s: 0.5}}, {{name: free, ttft_s: 9, tbt_s: 9}}]
classify: [{{when: {{tier: paid}}, class: paid}}, {{class: free}}]
batching: {{token_budget: {budget}, stages: [{stages}]}}
{more}
""".encode()


def shadowed(
    live: bytes, candidate: bytes, requests: list[TraceRequest] | None = None, *, begins: int = BEGINS, every: int = 1
) -> Tally:
    """A run under one policy with another beside it."""
    shadow: list[Shadow] = []
    seen = 0
    if requests is None:
        requests = synthetic("shared_prefixes", qps=6.0, duration_s=4.0, seed=4, max_sequence_tokens=300)

    def observe(core: str, now: float, event: Any, commands: list[Command]) -> None:
        nonlocal seen
        if core != SCHEDULER:
            return
        seen += 1
        if shadow:
            shadow[0].follow(event, now, encode(commands), compare=seen % every == 0)
        elif seen == begins:
            shadow.append(Shadow(copy_of(simulation.scheduler), candidate))

    simulation = Simulation(live, requests, DEVICE, observer=observe)
    simulation.run()
    return shadow[0].tally


def kinds(tally: Tally) -> dict[tuple[str, str], Disagreement]:
    return {(each.kind, each.by): each for each in tally.disagreements}


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_agrees_with_itself_whatever_it_is(name: str) -> None:
    document = (POLICIES / f"{name}.yaml").read_bytes()
    tally = shadowed(document, document, every=5)
    assert tally.num_plans > 50
    assert tally.num_compared > 5
    assert (tally.num_agreed, tally.disagreements) == (tally.num_compared, [])


def test_a_policy_that_predicts_lengths_agrees_with_itself() -> None:
    fcfs = (POLICIES / "fcfs.yaml").read_bytes()
    document = fcfs.replace(b"kv: {admit: prompt", b"kv: {admit: future, estimate: lower")
    assert document != fcfs
    tally = shadowed(document, document, every=3)
    assert tally.num_compared > 5
    assert (tally.num_agreed, tally.disagreements) == (tally.num_compared, [])


@pytest.mark.parametrize("name", NAMES)
def test_any_policy_can_stand_beside_any_other(name: str) -> None:
    live = (POLICIES / "slai.yaml").read_bytes()
    tally = shadowed(live, (POLICIES / f"{name}.yaml").read_bytes(), every=5)
    assert tally.num_compared > 5
    differing = sum(each.num_plans for each in tally.disagreements)
    assert (differing == 0) == (tally.num_agreed == tally.num_compared)


def test_other_orders_are_told_with_their_stages_and_an_example() -> None:
    requests = [TraceRequest(0.0, "a", "free", 200 - 20 * number, 4) for number in range(8)]
    waiting = "{{decode: {{}}}}, {{prefill: {{from: [started, waiting], chunked: true, order: [{}]}}}}"
    tally = shadowed(
        policy(waiting.format("arrival"), 40), policy(waiting.format("prompt_tokens"), 40), requests, begins=5
    )
    found = kinds(tally)
    assert {kind for kind, _ in found} >= {ORDER}
    ours = found[ORDER, CANDIDATE]
    assert (ours.stage, ours.example.was, ours.example.live_tokens) == (1, "waiting", 0)
    assert ours.example.candidate_tokens > 0
    assert ours.example.slo_class == "free"
    assert 0 < ours.num_plans <= tally.num_compared


def test_a_decode_that_one_defers_is_a_deferral() -> None:
    eager = policy("{decode: {}}, {prefill: {from: [started, waiting], chunked: true}}")
    lazy = policy("{decode: {when: due}}, {prefill: {from: [started, waiting], chunked: true}}, {decode: {}}", 40)
    requests = [TraceRequest(0.05 * number, "a", "free", 90, 30) for number in range(8)]
    found = kinds(shadowed(eager, lazy, requests, begins=10))
    assert found[DEFERRAL, LIVE].stage == 0
    assert found[DEFERRAL, LIVE].example.was == "decode"
    assert (DEFERRAL, CANDIDATE) not in found or found[DEFERRAL, CANDIDATE].num_rows < found[DEFERRAL, LIVE].num_rows


def test_pieces_of_other_lengths_are_told() -> None:
    stages = "{decode: {}}, {prefill: {from: [started, waiting], chunked: true}}"
    requests = [TraceRequest(0.05 * number, "a", "free", 200, 10) for number in range(6)]
    found = kinds(shadowed(policy(stages, 64), policy(stages, 100), requests, begins=4))
    chunk = found[CHUNK, CANDIDATE]
    assert chunk.example.candidate_tokens > chunk.example.live_tokens > 0


def test_what_one_alone_admits_is_an_admission() -> None:
    stages = "{decode: {}}, {prefill: {from: [started, waiting], chunked: true}}"
    requests = [TraceRequest(0.02 * number, "a", "free", 30, 40) for number in range(12)]
    many, few = policy(stages, 256), policy(stages, 256).replace(b"token_budget", b"max_sequences: 3, token_budget")
    found = kinds(shadowed(few, many, requests, begins=6))
    assert found[ADMISSION, CANDIDATE].example.was == "waiting"
    assert (ADMISSION, LIVE) not in found


def test_who_loses_its_blocks_to_one_alone_is_told() -> None:
    stages = "{decode: {}}, {prefill: {from: [started, waiting], chunked: true}}"
    requests = [TraceRequest(0.01 * number, "a", "free", 40, 200) for number in range(12)]
    newest, itself = (
        policy(stages, 256, f"preemption: {{victim: [{rule}]}}\nfairness: {{window_tokens: 9999}}")
        for rule in ("newest", "self")
    )
    found = kinds(shadowed(newest, itself, requests, begins=20))
    assert found[PREEMPTION, CANDIDATE].stage is None
    assert {(PREEMPTION, LIVE), (PREEMPTION, CANDIDATE)} <= found.keys()


def test_a_mirror_that_is_told_something_else_says_so() -> None:
    core = SchedulerCore()
    document = (POLICIES / "slai.yaml").read_bytes()
    told: list[tuple[Any, float, bytes]] = []

    def observe(name: str, now: float, event: Any, commands: list[Command]) -> None:
        if name == SCHEDULER:
            told.append((event, now, encode(commands)))

    Simulation(document, [TraceRequest(0.0, "a", "free", 40, 4)], DEVICE, observer=observe).run()
    shadow = Shadow(copy_of(core), document)
    for event, now, commands in told[:4]:
        shadow.follow(event, now, commands, compare=False)
    event, now, commands = told[5]  # one was lost on the way
    with pytest.raises(ShadowError, match="otherwise than the live scheduler"):
        shadow.follow(event, now, commands, compare=True)
