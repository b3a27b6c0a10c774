from typing import Any

from policies.simulation.what_if import Line, compare


def group(ttft: float | None, tbt: float | None = 0.1, goodput: float = 2.0) -> dict[str, Any]:
    return {
        "ttft_s": {"p50": ttft, "p99": ttft},
        "tbt_s": {"p50": tbt, "p99": tbt},
        "goodput_rps": goodput,
    }


def figures(classes: dict[str, Any], everyone: dict[str, Any], jain: float = 0.9) -> dict[str, Any]:
    return {
        **everyone,
        "tbt_s": {"all": everyone["tbt_s"]},
        "fairness": {"jain": jain, "max_gap": 100.0},
        "classes": classes,
        "tenants": {"acme": everyone},
    }


def lines(recorded: dict[str, Any], now: dict[str, Any], then: dict[str, Any]) -> dict[tuple[str, str], Line]:
    return {(line.group, line.metric): line for line in compare(recorded, now, then)}


def test_every_group_is_compared_with_what_happened_and_with_the_policy_in_force() -> None:
    found = lines(
        figures({"paid": group(1.0)}, group(1.0)),
        figures({"paid": group(1.1)}, group(1.1), jain=0.8),
        figures({"paid": group(0.55), "free": group(2.0)}, group(2.2, goodput=3.0), jain=0.9),
    )
    line = found["class paid", "TTFT p99"]
    assert (line.recorded, line.now, line.then) == (1.0, 1.1, 0.55)
    assert (round(line.change or 0, 9), round(line.error or 0, 9), line.verdict) == (-0.5, 0.1, "better")
    assert found["everyone", "TTFT p50"].verdict == "worse"
    assert found["everyone", "TBT p50"].verdict == "same"
    assert found["everyone", "goodput"].verdict == "better"
    assert found["everyone", "Jain's index"].verdict == "better"
    assert found["tenant acme", "goodput"].now == 2.0
    assert (found["everyone", "largest gap"].recorded, found["everyone", "largest gap"].now) == (None, 100.0)
    new = found["class free", "TTFT p50"]
    assert (new.recorded, new.now, new.then, new.change, new.verdict) == (None, None, 2.0, None, "")


def test_a_change_smaller_than_the_replays_own_error_is_none() -> None:
    recorded, now, then = (figures({}, group(value)) for value in (1.0, 1.2, 1.1))
    line = lines(recorded, now, then)["everyone", "TTFT p50"]
    assert line.verdict == "unsure"


def test_a_figure_without_samples_is_judged_by_nobody() -> None:
    nothing = figures({}, group(None, None, 0.0))
    line = lines(nothing, nothing, figures({}, group(1.0)))["everyone", "TTFT p50"]
    assert (line.change, line.error, line.verdict) == (None, None, "")
    assert lines(nothing, nothing, nothing)["everyone", "goodput"].change is None
