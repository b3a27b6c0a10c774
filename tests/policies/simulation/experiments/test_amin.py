"""A_min and its kin in the papers' model: the gates of the prediction specification, section 12, at sizes that a test
has time for. `fairlead experiment amin` runs the papers' sizes.
"""

from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from policies.document.loading import load_live_policy, load_policy
from policies.document.problems import PolicyError
from policies.simulation.experiments import ExperimentError, Options, amin
from policies.simulation.experiments.amin import Ran, drawn, simulate
from policies.simulation.experiments.amin_settings import (
    DRAWN,
    LONGEST,
    RULES,
    SETTINGS,
    UNINFORMED,
    Setting,
    around,
    document,
)

KV_TOKENS = 3000
BY_NAME = {setting.name: setting for setting in SETTINGS}


@cache
def ran(
    policy: str,
    prediction: str,
    *,
    outputs: str = "lognormal",
    prompts: str = "equal",
    seed: int = 0,
    num_requests: int = 500,
) -> Ran:
    setting = Setting("test", prediction, {}, outputs=outputs, prompts=prompts, num_requests=num_requests)
    lengths, sizes, _ = drawn(setting, seed)
    result = simulate(document(policy, prediction), lengths, sizes, KV_TOKENS)
    assert not np.isnan(result.latency_s).any()
    assert result.peak_tokens <= KV_TOKENS  # T7
    return result


def mean(policy: str, prediction: str, **options: Any) -> float:
    return float(ran(policy, prediction, **options).latency_s.mean())


def of_hindsight(policy: str, prediction: str, **options: Any) -> float:
    return mean(policy, prediction, **options) / mean("hindsight", "kind: oracle", **options)


@pytest.mark.parametrize("policy", list(RULES))
def test_each_policy_of_the_experiment_loads_for_a_replay_and_only_there(policy: str) -> None:
    text = document(
        policy, UNINFORMED if policy != "amin_quantile" else "kind: distribution, prior: {kind: geometric, mean: 9}"
    )
    assert load_policy(text).name == policy
    with pytest.raises(PolicyError, match="paper is for replays"):
        load_live_policy(text)


def least_latency(outputs: tuple[int, ...], prompts: tuple[int, ...], kv_tokens: int) -> int:
    """The least total latency of any schedule that never preempts: every step tries to start whomever it could."""
    count = len(outputs)

    @cache
    def best(state: tuple[int, ...]) -> int:
        """`state`: tokens produced of each, -1 not started. Latency still to come, a step for each not ended."""
        waiting = [i for i in range(count) if state[i] < 0]
        running = [i for i in range(count) if 0 <= state[i] < outputs[i]]
        if not waiting and not running:
            return 0
        least = None
        for size in range(len(waiting) + 1):
            for starts in combinations(waiting, size):
                now = [*running, *starts]
                if not now or sum(prompts[i] + max(state[i], 0) + 1 for i in now) > kv_tokens:
                    continue
                if not fits([(prompts[i] + max(state[i], 0), outputs[i] - max(state[i], 0)) for i in now], kv_tokens):
                    continue
                after = list(state)
                for i in now:
                    after[i] = max(state[i], 0) + 1
                cost = len(waiting) + len(running) + best(tuple(after))
                least = cost if least is None else min(least, cost)
        assert least is not None
        return least

    return best((-1,) * count)


def fits(members: list[tuple[int, int]], kv_tokens: int) -> bool:
    """Whether members (tokens held, steps left) run to their ends without anybody preempted."""
    longest = max(left for _, left in members)
    return all(
        sum(held + step for held, left in members if left >= step) <= kv_tokens for step in range(1, longest + 1)
    )


def test_hindsight_is_close_to_the_best_schedule_there_is() -> None:  # T2
    generator = np.random.default_rng(0)
    ratios = []
    for _ in range(50):
        count, kv_tokens = int(generator.integers(2, 6)), int(generator.integers(12, 30))
        prompts = np.full(count, generator.integers(1, 4))
        outputs = generator.integers(1, 8, count)
        policy = document("hindsight", "kind: oracle")
        result = simulate(policy, outputs, prompts, kv_tokens, longest=8, check=True)
        best = least_latency(tuple(outputs.tolist()), tuple(prompts.tolist()), kv_tokens)
        ratios.append(result.latency_s.sum() / best)
    assert min(ratios) >= 1.0
    assert np.mean(ratios) <= 1.03
    assert max(ratios) <= 1.15


@pytest.mark.parametrize("seed", [0, 1])
def test_without_information_lower_bounds_beat_upper_bounds_by_far(seed: int) -> None:  # T3a
    assert mean("amin", UNINFORMED, seed=seed) <= 0.25 * mean("amax", UNINFORMED, seed=seed)
    assert of_hindsight("amin", UNINFORMED, seed=seed) <= 4.0


@pytest.mark.parametrize("seed", [0, 1])
def test_with_buckets_of_100_a_min_is_close_to_hindsight(seed: int) -> None:  # T3b
    buckets = BY_NAME["buckets of 100"].prediction
    assert of_hindsight("amin", buckets, seed=seed) <= 1.2
    assert mean("amin", buckets, seed=seed) <= 0.8 * mean("amax", buckets, seed=seed)


@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_that_do_not_give_the_truth_away_are_enough(seed: int) -> None:  # T3c, T3d
    assert of_hindsight("amin", around(0.5, "random"), seed=seed) <= 1.15
    wide = around(0.95, "random")
    assert of_hindsight("amin", wide, seed=seed) <= 1.35
    assert of_hindsight("amin_restart", wide, prompts="lognormal_prompts", seed=seed) <= 1.5
    assert mean("amin", wide, seed=seed) <= 0.8 * mean("amax", wide, seed=seed)


@pytest.mark.parametrize("share", [2, 5, 8])
def test_of_two_lengths_those_that_are_tested_first_tell(share: int) -> None:  # T4
    setting = next(setting for setting in SETTINGS if setting.outputs == f"two_point_{share}")
    options: dict[str, Any] = {"outputs": setting.outputs, "num_requests": 200}
    assert of_hindsight("amin_restart", setting.prediction, **options) <= 2.0
    assert of_hindsight("a_l", setting.prediction, **options) <= 1.15


@pytest.mark.parametrize(("outputs", "most"), [("geometric", 2.5), ("linear_geometric", 1.9)])
def test_of_known_distributions_a_min_stays_within_a_constant(outputs: str, most: float) -> None:  # T4
    setting = next(setting for setting in SETTINGS if setting.outputs == outputs)
    for policy in ("amin", "amin_restart", "amin_quantile"):
        assert of_hindsight(policy, setting.prediction, outputs=outputs) <= most


def test_a_min_grows_with_the_logarithm_of_the_uncertainty_and_a_max_with_the_uncertainty() -> None:  # T5
    doublings, longest = (1, 3, 5, 8), 256
    ratios: dict[str, list[float]] = {"amin": [], "amax": []}
    for doubling in doublings:
        outputs = np.exp2(np.random.default_rng(doubling).uniform(8 - doubling, 8, 120)).round().astype(np.int64)
        prompts = np.full(120, 10)
        interval = f"kind: constant, interval: {{lower: {longest >> doubling}, upper: {longest}}}"
        latency = {
            policy: simulate(document(policy, interval), outputs, prompts, 1500, longest=longest).latency_s.mean()
            for policy in ("hindsight", "amin", "amax")
        }
        for policy, values in ratios.items():
            values.append(float(latency[policy] / latency["hindsight"]))
    assert max(ratios["amin"]) <= 2.2
    slopes = {policy: np.polyfit(doublings, values, 1)[0] for policy, values in ratios.items()}
    assert slopes["amax"] >= 4 * slopes["amin"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_different_prompts_the_volume_is_the_better_order(seed: int) -> None:  # T6
    options: dict[str, Any] = {"prompts": "lognormal_prompts", "seed": seed}
    assert of_hindsight("hindsight_volume", "kind: oracle", **options) <= 0.9
    prediction = around(0.5, "random")
    assert mean("amin_volume", prediction, **options) <= mean("amin", prediction, **options)


def test_guards_bound_preemptions_and_cost_the_mean_nothing() -> None:  # T8
    setting = BY_NAME["open stream at load 1.1"]
    outputs, prompts, arrivals = drawn(setting, 0)
    result = {
        policy: simulate(document(policy, setting.prediction), outputs, prompts, setting.kv_tokens, arrivals=arrivals)
        for policy in ("amin", "amin_guarded", "fcfs_optimistic")
    }
    free, guarded = result["amin"], result["amin_guarded"]
    assert guarded.latency_s.mean() <= 1.03 * free.latency_s.mean()
    assert np.quantile(guarded.latency_s, 0.99) <= np.quantile(free.latency_s, 0.99)
    assert free.most_preemptions > guarded.most_preemptions <= 6
    assert guarded.latency_s.mean() <= 0.8 * result["fcfs_optimistic"].latency_s.mean()


def test_the_experiment_compares_every_setting_with_hindsight(monkeypatch: pytest.MonkeyPatch) -> None:
    small = (
        Setting("a few", around(0.5, "random"), {"amax": "1.4", "amin": ""}, num_requests=30, kv_tokens=1500),
        Setting("a stream", UNINFORMED, {"amin": ""}, num_requests=30, kv_tokens=1500, load=0.5),
    )
    monkeypatch.setattr(amin, "SETTINGS", small)
    told: list[tuple[int, int]] = []
    figures = amin.run(Options(policies={}, seeds=(1, 2)), lambda done, of: told.append((done, of)))
    assert told == [(number, 10) for number in range(1, 11)]
    first, second = figures["settings"]
    assert [run["policy"] for run in first["runs"]] == ["hindsight"] * 2 + ["amax"] * 2 + ["amin"] * 2
    assert [run["of_hindsight"] for run in first["runs"][:2]] == [1.0, 1.0]
    assert second["load"] == 0.5
    text = amin.table(figures)
    assert "a few: 30 requests, 1500 tokens of KV, all at once" in text
    assert "a stream: 30 requests, 1500 tokens of KV, load 0.5" in text


@pytest.mark.parametrize("option", [{"qps": (1.0,)}, {"executor_efficiency": 0.5}, {"policies": {"slai": b""}}])
def test_options_that_the_papers_model_has_no_room_for_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ExperimentError, match="of the options only --seeds, --processes, --json and --html apply"):
        amin.run(Options(**{"policies": {}, **option}), lambda _done, _of: None)


def test_lengths_are_distributed_as_they_should_be() -> None:
    generator = np.random.default_rng(0)
    assert np.median(DRAWN["lognormal"](generator, 20_000)) == pytest.approx(45, rel=0.03)
    assert DRAWN["lognormal"](generator, 20_000).mean() == pytest.approx(82, rel=0.06)
    assert DRAWN["geometric"](generator, 20_000).mean() == pytest.approx(80, rel=0.03)
    assert DRAWN["linear_geometric"](generator, 20_000).mean() == pytest.approx(79, rel=0.03)
    assert max(DRAWN["lognormal"](generator, 20_000)) == LONGEST
