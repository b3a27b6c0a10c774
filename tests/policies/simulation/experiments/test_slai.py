"""SLAI's evaluation: what counts, what is searched, what is printed."""

from math import exp
from pathlib import Path
from typing import Any

import pytest

from policies.simulation.experiments import ExperimentError, Options, slai

SHIPPED = Path(__file__).resolve().parents[4] / "policies"
LIMITS_S = {"sarathi": 1.50, "slai": 1.85}


def documents(*names: str) -> dict[str, bytes]:
    return {name: (SHIPPED / f"{name}.yaml").read_bytes() for name in names}


def figures(*, median: float | None = 0.4, paid: float | None = 0.09, free: float = 0.4, unfinished: int = 4) -> Any:
    return {
        "arrived": 100,
        "unfinished": unfinished,
        "ttft_prefill_s": {"p50": median, slai.JUDGED: median, "p99": 2.0},
        "ttft_s": {"p50": 0.1, slai.JUDGED: None if median is None else median + 0.05, "p99": 2.0},
        "tbt_s": {"paid": {"p99": paid}, "free": {"p99": free}},
    }


def test_the_criterion_is_the_papers() -> None:
    assert slai.meets(figures(), "ttft_prefill_s")
    assert slai.meets(figures(paid=None), "ttft_prefill_s"), "a class nobody is in is not late"
    for worse in ({"median": 0.5}, {"median": None}, {"paid": 0.1}, {"free": 0.5}, {"unfinished": 5}):
        assert not slai.meets(figures(**worse), "ttft_prefill_s"), worse
    assert not slai.meets(figures(median=0.46), "ttft_s"), "by the first token, the same run is too late"


@pytest.mark.parametrize("grid", [(0.2, 1.0, 1.6, 2.0), (1.0,), (3.0,)])
def test_the_search_ends_within_one_percent_below_the_limit(
    monkeypatch: pytest.MonkeyPatch, grid: tuple[float, ...]
) -> None:
    ran: list[tuple[str, float]] = []

    def simulate(point: slai.Point) -> dict[str, Any]:
        ran.append((point.policy, point.qps))
        median = 0.5 * exp(4 * (point.qps - LIMITS_S[point.policy]))
        run = {"policy": point.policy, "qps": point.qps, "seed": point.seed, **figures(median=median)}
        return {**run, "long_prompts": {"ttft_prefill_s": {"p99": None}}, "preemptions": 0}

    monkeypatch.setattr(slai, "simulate", simulate)
    told: list[tuple[int, int]] = []
    options = Options(policies=documents("sarathi", "slai"), qps=grid)
    found = slai.run(options, lambda done, total: told.append((done, total)))
    for one in found["capacity"]:
        limit = LIMITS_S[one["policy"]]
        assert limit / 1.0101 < one["rps"] < limit
        assert limit - 0.05 < one["rps_first_token"] < one["rps"]
    assert len(ran) == len(set(ran)), "a run was repeated"
    assert len(ran) < 2 * (len(grid) + 12)
    for one, host in zip(found["at_capacity"], found["capacity"], strict=True):
        assert (one["capacity_of"], one["qps"]) == (host["policy"], host["rps"])
        medians = one["median_ttft_prefill_s"]
        assert medians[one["capacity_of"]] == pytest.approx(0.5, rel=0.1)
        assert medians["sarathi"] > 3 * medians["slai"]
    total = 2 * len(grid) + 4
    assert (told[0], told[-1]) == ((0, total), (total, total))
    text = slai.table(found)
    assert "capacity, seed 42" in text
    assert "+26%" in text
    assert "-53%" in text


def test_a_short_run_has_the_documented_figures_and_counts_whoever_never_got_there_as_infinite() -> None:
    options = Options(policies=documents("sarathi"), qps=(5.0,), seeds=(1,), duration_s=10.0, strict_share=0.5)
    point = slai.points(options, [(7000, 900), (10, 900)])[0]
    run = slai.simulate(point)
    assert list(run)[:8] == [
        *("policy", "qps", "seed", "arrived", "unfinished", "ttft_prefill_s", "ttft_s", "tbt_s"),
    ]
    assert run["unfinished"] == run["arrived"] == 2
    assert run["ttft_prefill_s"]["p50"] < run["ttft_s"]["p50"]
    assert run["ttft_s"][slai.JUDGED] is None
    assert run["long_prompts"]["ttft_prefill_s"]["p99"] == run["ttft_prefill_s"]["p99"]
    short = slai.simulate(
        slai.points(Options(policies=documents("sarathi"), duration_s=0.9, qps=(5.0,)), [(8000, 20)] * 9)[0]
    )
    assert short["arrived"] > 3
    assert short["ttft_s"] == {"p50": None, "p99": None, "mean": None, slai.JUDGED: None}


def test_without_a_folder_the_trace_is_made_up_and_the_output_says_so() -> None:
    options = Options(policies=documents("slai"), qps=(0.5,), duration_s=4.0)
    found = slai.run(options, lambda done, total: None)
    assert found["setup"]["trace"] == slai.SYNTHETIC
    assert slai.table(found).startswith("synthetic lengths of the same statistics on rtx6000ada-mistral7b (modelled)")


def test_a_folder_without_the_trace_and_a_file_that_is_none_are_named(tmp_path: Path) -> None:
    options = Options(policies=documents("slai"), data=tmp_path)
    path = tmp_path / slai.TRACE
    with pytest.raises(ExperimentError, match=f"{path}: cannot be read: No such file or directory; --data names"):
        slai.run(options, lambda done, total: None)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ExperimentError, match=f"{path}:1: the header is `a,b`; accepted is `num_prefill_tokens"):
        slai.run(options, lambda done, total: None)
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ExperimentError, match=f"{path}: is not a text file: invalid start byte at byte 0"):
        slai.run(options, lambda done, total: None)


def test_a_policy_without_the_papers_classes_is_refused() -> None:
    document = documents("slai")["slai"].replace(b"paid", b"gold")
    with pytest.raises(ExperimentError, match="--policy mine: has the classes gold, free; this experiment needs paid"):
        slai.run(Options(policies={"mine": document}), lambda done, total: None)
