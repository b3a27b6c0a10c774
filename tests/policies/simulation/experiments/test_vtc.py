"""VTC's evaluation: what is run, what must hold, and that the bound's meter turns red when the lift is taken out."""

import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from policies.admission.fairness import FairQueue
from policies.admission.nodes import Node
from policies.document.loading import load_live_policy, load_policy
from policies.document.problems import PolicyError
from policies.simulation.experiments import ExperimentError, Options, vtc, vtc_page
from policies.simulation.experiments.vtc_checks import checks
from policies.simulation.experiments.vtc_published import PUBLISHED
from policies.simulation.experiments.vtc_settings import CASES, COSTS, OWN, POOL_TOKENS, REAL, SEED, Case, document

DATA = Path(os.environ.get("FAIRLEAD_DATA") or Path(__file__).resolve().parents[5] / "shared" / "data")
U_OF_POOL = 2.0 * POOL_TOKENS


def _data() -> Path:
    if not (DATA / vtc.TRACE).is_file():
        pytest.skip(f"{DATA / vtc.TRACE} is not there")
    return DATA


def options(*names: str, **more: Any) -> Options:
    return Options(policies={name: OWN[name] for name in names}, **more)


def point(workload: str, policy: str, data: Path | None = None) -> vtc.Point:
    asked = options(policy, data=data)
    found = vtc.points(asked, SEED, None if data is None else vtc.trace_of(data))
    return next(one for one in found if one.cases[0] == Case(workload, policy))


def gap_of_pool(one: vtc.Point) -> float:
    """The largest gap over the bound with M = pool."""
    (figures, *_) = vtc.simulate(one)
    return float(figures["gap"]) / U_OF_POOL


def without_lift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FairQueue, "_lift_level", lambda _queue, node: node.counter)


def without_idle_lift(monkeypatch: pytest.MonkeyPatch) -> None:
    def level(queue: FairQueue, node: Node) -> float:
        least = queue.least(node.above)
        return node.counter if least is None else least.counter

    monkeypatch.setattr(FairQueue, "_lift_level", level)


def test_every_policy_is_a_valid_document_for_replays_and_every_published_case_is_run() -> None:
    for case in CASES:
        policy = load_policy(document(case.policy, case.cost))
        assert policy.fairness.reserve == "occupancy"
        assert len(policy.limits) == (case.policy.startswith("rpm"))
    assert set(PUBLISHED) <= set(CASES)
    assert len(set(CASES)) == len(CASES)
    assert set(COSTS) == {case.cost for case in CASES}


def test_a_run_is_made_once_and_judged_by_both_costs_where_the_authors_made_one() -> None:
    found = vtc.points(options(*OWN), SEED, None)
    assert sum(len(one.cases) for one in found) == len(CASES)
    for name in ("fcfs", "lcf", "rpm_5"):
        one_run = next(one for one in found if one.cases[0] == Case(REAL, name))
        assert one_run.cases == [Case(REAL, name), Case(REAL, name, "quadratic")]
    assert [one.cases for one in found if Case(REAL, "vtc", "quadratic") in one.cases] == [
        [Case(REAL, "vtc", "quadratic")]
    ]


def test_the_meter_is_green_and_turns_red_without_the_lift(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = point("dist_shift", "vtc")
    shift = replace(whole, requests=[request for request in whole.requests if request.arrived_at_s < 150.0])
    assert gap_of_pool(shift) < 0.6
    without_lift(monkeypatch)
    assert gap_of_pool(shift) > 1.5


def test_a_policy_of_ones_own_runs_on_every_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    own = document("lcf", "weighted_tokens").replace(b"name: lcf", b"name: mine")
    found = vtc.points(Options(policies={"mine": own}), SEED, None)
    assert [one.cases for one in found] == [
        [Case(name, "mine")] for name in dict.fromkeys(case.workload for case in CASES)
    ]
    overload = next(one.requests for one in found if one.cases[0].workload == "overload")
    short = [request for request in overload if request.arrived_at_s < 20.0]

    def points(*_: object) -> list[vtc.Point]:
        return [vtc.Point([Case("overload", name)], OWN[name], short, SEED, 1.0) for name in ("vtc", "rpm_5")]

    monkeypatch.setattr(vtc, "points", points)
    told: list[tuple[int, int]] = []
    figures = vtc.run(options("vtc", "rpm_5"), lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (2, 2)]
    first, limited = figures["cases"]
    assert list(first)[:10] == [
        *("workload", "policy", "cost", "seed", "max_diff", "avg_diff", "diff_var", "tokens_per_s", "rejected"),
        "mean_ttft_s",
    ]
    assert first["published"]["avg_diff"] == 103.77
    assert limited["published"] is None
    assert first["rejected"] == 0 < limited["rejected"]
    assert max(first["gap_ratio"], first["pair_ratio"]) <= 1.0
    assert first["preemptions"] == 0
    text = vtc.table(figures)
    for words in ("published", "obtained", "checks hold", "103.8", "synthetic requests"):
        assert words in text
    page = vtc_page.html(figures)
    for words in ("overload: differences", "What must hold", "overload: service under vtc"):
        assert words in page


def test_what_the_workloads_have_no_room_for_is_refused_in_one_sentence(tmp_path: Path) -> None:
    for more in ({"qps": (1.0,)}, {"strict_share": 0.5}, {"duration_s": 5.0}):
        with pytest.raises(ExperimentError, match="do not apply"):
            vtc.run(options("vtc", **more), lambda *_: None)
    with pytest.raises(ExperimentError, match="cannot be read"):
        vtc.run(options("vtc", data=tmp_path), lambda *_: None)
    (tmp_path / vtc.TRACE).write_text("nothing,like,it\n1,2,3\n")
    with pytest.raises(ExperimentError, match="the header is"):
        vtc.run(options("vtc", data=tmp_path), lambda *_: None)


def test_a_check_fails_when_a_figure_is_off() -> None:
    def case(policy: str, avg_diff: float, workload: str = "eight_tenants") -> dict[str, Any]:
        published = PUBLISHED[Case(workload, policy)]
        figures = {"avg_diff": avg_diff, "tokens_per_s": 875.0, "gap_ratio": 0.5, "pair_ratio": 1.2, "seed": SEED}
        kept = {"avg_diff": published.avg_diff, "tokens_per_s": published.tokens_per_s}
        return {"workload": workload, "policy": policy, "cost": "weighted_tokens", "published": kept, **figures}

    right = (("fcfs", 231.0), ("vtc", 160.0), ("vtc_noisy", 66.0), ("vtc_oracle", 36.0))
    held = {check["what"]: check["holds"] for check in checks([case(*pair) for pair in right])}
    assert [what for what, holds in held.items() if not holds] == ["eight_tenants, vtc: bound"]
    wrong = (("fcfs", 150.0), ("vtc", 160.0), ("vtc_noisy", 30.0), ("vtc_oracle", 36.0))
    held = {check["what"]: check["holds"] for check in checks([case(*pair) for pair in wrong])}
    assert [what for what, holds in held.items() if not holds] == [
        "eight_tenants, fcfs: avg_diff",
        "eight_tenants, vtc_noisy: avg_diff",
        "order of avg_diff, eight tenants",
        "eight_tenants, vtc: bound",
    ]


def test_no_policy_of_a_replay_can_serve() -> None:
    with pytest.raises(PolicyError):
        load_live_policy(OWN["vtc"], "vtc.yaml")


# --- with the published trace ------------------------------------------------------------------------------------

NOT_HELD = "order of avg_diff, real trace, quadratic"
"""By the profiled cost the predictor's average comes out 1 % above plain VTC's, not below; both are near the published
ones. Which of the two is smaller is chance. In an independent loop, which gives plain VTC the same 326.0, 60 runs whose
step times differ by less than 1 % came to 332 (standard deviation 20) without the predictor and 338 (18) with it, and
the published order held in 23 of them. With what the authors' loop does otherwise (no lift in an empty queue, tokens
charged again when any request ends, predictions not rounded, 32 tokens of the pool for each tenant in the batch) it
held in 12 of 33 to 34 of 60. What was published is one run of each.
"""


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_published_figure_is_met() -> None:
    found = vtc.run(options(*OWN, data=_data(), processes=2), lambda *_: None)
    failed = [check for check in found["checks"] if not check["holds"] and check["what"] != NOT_HELD]
    assert not failed
    assert len(found["checks"]) > 90
    assert {one["preemptions"] for one in found["cases"]} == {0}


@pytest.mark.data
@pytest.mark.slow
def test_on_the_trace_the_meter_turns_red_without_either_lift(monkeypatch: pytest.MonkeyPatch) -> None:
    real = point(REAL, "vtc", _data())
    assert gap_of_pool(real) == pytest.approx(0.63, rel=0.1)
    without_idle_lift(monkeypatch)
    assert gap_of_pool(real) == pytest.approx(3.2, rel=0.1)
    without_lift(monkeypatch)
    assert gap_of_pool(real) == pytest.approx(6.4, rel=0.1)
