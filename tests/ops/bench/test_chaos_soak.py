"""Growth of memory is told from noise."""

import numpy as np

from ops.bench.chaos_soak import EDITS, growth
from services.settings import REPOSITORY

MIB = 2**20


def samples(mib_per_s: float, seed: int = 5) -> list[tuple[float, dict[str, int]]]:
    """Ten minutes of a process that swings by a tenth, each swing some seconds long."""
    noise = np.repeat(np.random.default_rng(seed).normal(0, 5, 120), 10)
    times_s = np.arange(1200) * 0.5
    return [
        (at_s, {"gateway": int((100 + more + mib_per_s * at_s) * MIB), "executor": 400 * MIB})
        for at_s, more in zip(times_s.tolist(), noise.tolist(), strict=True)
    ]


def test_noise_is_no_growth() -> None:
    seen = growth(samples(0.0))
    assert abs(seen.in_ten_minutes) < 2 * seen.uncertainty


def test_a_leak_is_seen_through_the_noise() -> None:
    seen = growth(samples(0.1))
    assert seen.in_ten_minutes - seen.uncertainty > 0.05
    assert abs(seen.in_ten_minutes * seen.rss_bytes / MIB - 60) < 2 * seen.uncertainty * seen.rss_bytes / MIB
    assert seen.by_process["executor"] == (400 * MIB, 400 * MIB)


def test_every_edit_changes_the_shipped_policy() -> None:
    text = (REPOSITORY / "policies" / "fairlead.yaml").read_text()
    assert [was for was, becomes in EDITS if text.replace(was, becomes) == text] == []
