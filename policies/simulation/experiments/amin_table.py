"""The A_min experiment for people: each setting's policies beside hindsight and beside what was seen before."""

from collections.abc import Mapping
from typing import Any

import numpy as np

COLUMNS = ("of hindsight", "least", "most", "seen before", "preempted", "recomputed", "p99", "longest 5 %")


def table(figures: Mapping[str, Any]) -> str:
    """A block for each setting: mean latency over hindsight's (mean, least and most of the seeds), preemptions and
    recomputed tokens, and in steps the 99th percentile and the mean of the longest 5 % of the outputs.
    """
    seeds = ", ".join(str(seed) for seed in figures["seeds"])
    lines = [f"A_min and its kin on a machine of unit steps; mean latency over hindsight's, seeds {seeds}"]
    for setting in figures["settings"]:
        load = "all at once" if setting["load"] is None else f"load {setting['load']:g}"
        lines += [
            "",
            f"{setting['setting']}: {setting['num_requests']} requests, {setting['kv_tokens']} tokens of KV, {load}",
            f"  {'':18}" + "".join(f"{name:>20}" if name == "seen before" else f"{name:>13}" for name in COLUMNS),
            *_rows(setting["runs"]),
        ]
    return "\n".join(lines)


def _rows(runs: list[Mapping[str, Any]]) -> list[str]:
    rows = []
    for policy in dict.fromkeys(run["policy"] for run in runs):
        mine = [run for run in runs if run["policy"] == policy]
        ratios = [run["of_hindsight"] for run in mine]
        figures = [f"{value:13.2f}" for value in (np.mean(ratios), min(ratios), max(ratios))]
        figures.append(f"{mine[0]['seen']:>20}")
        names = ("preemptions", "recomputed_tokens", "p99_latency_s", "mean_latency_of_longest_s")
        figures += [f"{np.mean([run[name] for run in mine]):13.0f}" for name in names]
        rows.append(f"  {policy:18}" + "".join(figures))
    return rows
