import numpy as np
import pytest

from services.traffic import gaps


def test_percentiles_read_from_the_bins_are_within_a_hundredth_of_the_exact_ones() -> None:
    generator = np.random.default_rng(1)
    made = [np.cumsum(generator.lognormal(-4, 1, 400) * 1e9).astype(np.int64) for _ in range(5)]
    exact = np.sort(np.concatenate([np.diff(series) for series in made])) / 1e9
    counts = sum((gaps.unpack(gaps.pack([series])) for series in made), gaps.Counts())
    assert counts.total() == len(exact) == 5 * 399
    for quantile in (0.5, 0.9, 0.99):
        nearest_rank = exact[int(np.ceil(quantile * len(exact))) - 1]
        assert gaps.percentile_s(counts, quantile) == pytest.approx(nearest_rank, rel=0.0101)
    limit_s = float(exact[1000])
    assert gaps.share_within(counts, limit_s) == pytest.approx(1001 / len(exact), abs=0.02)


def test_a_request_of_one_token_has_no_gaps() -> None:
    packed = gaps.pack([np.array([5], np.int64), np.empty(0, np.int64)])
    assert packed == b""
    assert gaps.percentile_s(gaps.unpack(packed), 0.5) is None
    assert gaps.share_within(gaps.unpack(packed), 0.1) == 1


def test_gaps_beyond_the_bins_count_in_the_outermost() -> None:
    counts = gaps.unpack(gaps.pack([np.array([0, 0, 10**13], np.int64)]))
    assert counts == {0: 1, gaps.LAST_BIN: 1}
