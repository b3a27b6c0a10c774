"""Pages of plots, from figures."""

from policies.simulation.experiments import amin_page


def test_the_page_of_amin_has_a_plot_a_setting_and_what_each_policy_costs() -> None:
    def run(policy: str, seed: int, of_hindsight: float) -> dict[str, object]:
        costs = {"preemptions": 3, "recomputed_tokens": 70, "p99_latency_s": 812.4, "mean_latency_of_longest_s": 900.0}
        return {"policy": policy, "seed": seed, "of_hindsight": of_hindsight, "seen": "1.2-1.4", **costs}

    runs = [run(name, seed, ratio) for name, ratio in (("hindsight", 1.0), ("amin", 1.25)) for seed in (0, 1)]
    setting = {"setting": "narrow intervals", "num_requests": 40, "kv_tokens": 900, "load": None, "runs": runs}
    text = amin_page.html({"seeds": [0, 1], "settings": [setting, {**setting, "setting": "wide", "load": 0.9}]})
    for words in (
        *("<h2>narrow intervals</h2><p>40 requests, 900 tokens of KV, all at once.</p>", "load 0.9", "seeds 0, 1."),
        *("<td>wide: amin</td>", "<td>812</td>", "<td>1.2-1.4</td>"),
    ):
        assert words in text
    assert text.count('id="plot') == 2
