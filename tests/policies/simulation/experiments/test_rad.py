"""The theorems' machine: what is stable there, what is not, and that nobody beats the bound."""

from pathlib import Path
from typing import Any

import pytest

from policies.document.loading import load_policy
from policies.simulation.driver import Simulation
from policies.simulation.executor_model import DEVICES
from policies.simulation.experiments import ExperimentError, Options, rad

SHIPPED = Path(__file__).resolve().parents[4] / "policies"


def document(name: str) -> bytes:
    return (SHIPPED / f"{name}.yaml").read_bytes()


def after(name: str, qps: float, seed: int = 1, duration_s: float = 100.0) -> rad.Figures:
    return rad.simulate(rad.Point(name, rad.on_tiles(document(name), name), qps, seed, duration_s))


def test_the_workload_is_the_theorys() -> None:
    requests = rad.workload(rad.CAPACITY_RPS, seed=1, duration_s=2000.0)
    tokens = [request.prompt_tokens + request.output_tokens for request in requests]
    assert sum(tokens) / len(tokens) == pytest.approx(rad.MEAN_REQUEST_TOKENS, rel=0.01)
    assert {request.prompt_tokens for request in requests} == {128 * tiles for tiles in range(1, 9)}
    assert (min(r.output_tokens for r in requests), max(r.output_tokens for r in requests)) == (1, 512)
    assert round(rad.CAPACITY_RPS, 2) == 36.24


def test_rad_is_stable_just_below_the_bound_and_nobody_is_above_it() -> None:
    below, above = (after("rad", share * rad.CAPACITY_RPS) for share in (0.95, 1.05))
    assert below["backlog_tokens"] < 60_000
    assert not below["diverged"]
    assert above["diverged"]
    drift = (above["load"] - 1) * 100.0 * rad.SERVED_TOKENS_PER_S
    assert above["backlog_tokens"] == pytest.approx(drift, abs=60_000)
    assert above["share_of_bound"] == pytest.approx(1.0, abs=0.01)


def test_where_rad_and_sarathi_are_stable_a_batch_of_whole_requests_is_not() -> None:
    assert after("fastertransformer", 30.0, duration_s=50.0)["backlog_tokens"] > 150_000
    assert after("fastertransformer", 20.0, duration_s=50.0)["backlog_tokens"] < 80_000
    for name in ("rad", "sarathi"):
        assert after(name, 30.0, duration_s=50.0)["backlog_tokens"] < 40_000


@pytest.mark.parametrize(("share", "stable"), [(0.9, True), (1.15, False)])
def test_with_a_random_router_two_executors_hold_twice_the_load(share: float, stable: bool) -> None:
    duration_s = 40.0
    requests = rad.workload(2 * share * rad.CAPACITY_RPS, seed=2, duration_s=duration_s)
    outcome = Simulation(
        rad.on_tiles(document("rad"), "rad"), requests, DEVICES["toy-tile"](1.0), num_executors=2, duration_s=duration_s
    ).run()
    assert (rad.backlog_tokens(outcome.served) < 200_000) == stable


@pytest.mark.parametrize("option", [{"data": SHIPPED}, {"executor_efficiency": 1.0}, {"strict_share": 0.0}])
def test_what_the_theory_has_no_room_for_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ExperimentError, match="rad takes no --data, --executor-efficiency or --strict-share"):
        rad.run(Options(policies={"rad": document("rad")}, **option), lambda done, total: None)


def test_policies_are_sized_for_tiles_and_whole_prompts_stay_whole() -> None:
    sizes = {}
    for name in ("rad_calibrated", "vllm", "fastertransformer"):
        batching = load_policy(rad.on_tiles(document(name), name)).batching
        sizes[name] = (batching.token_budget, batching.max_sequences, batching.max_decodes)
    assert sizes == {
        "rad_calibrated": (128, 128, 128),
        "vllm": (8192, 128, 128),
        "fastertransformer": ("none", 128, 128),
    }


def test_the_table_puts_theory_beside_what_was_obtained() -> None:
    told: list[tuple[int, int]] = []
    options = Options(policies={name: document(name) for name in ("rad", "orca")}, qps=(20.0, 50.0), duration_s=20.0)
    figures = rad.run(options, lambda done, total: told.append((done, total)))
    assert [(one["policy"], one["qps"]) for one in figures["runs"]] == [
        *(("rad", 20.0), ("rad", 50.0), ("orca", 20.0), ("orca", 50.0)),
    ]
    assert (told[0], told[-1]) == ((0, 4), (4, 4))
    lines = rad.table(figures).splitlines()
    assert lines[0].startswith("theorem 1: no policy serves more than 27,586 tokens/s here, 36.24 requests/s")
    assert [line.split("  ")[-1] for line in lines[2:6]] == [
        *("stable, stable", "diverges, diverges", "no claim, stable", "diverges, diverges"),
    ]
