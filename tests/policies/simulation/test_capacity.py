"""Bisection over the rate."""

import pytest

from policies.simulation.capacity import find_capacity


@pytest.mark.parametrize("limit", [0.013, 0.4, 1.0, 1.873, 2.0, 57.0])
def test_the_limit_is_found_to_the_precision_wherever_it_lies(limit: float) -> None:
    found = find_capacity(lambda qps: qps <= limit, low_qps=1.0, high_qps=2.0)
    assert found.qps is not None
    assert limit / 1.01 <= found.qps <= limit
    assert found.bounded


def test_a_good_guess_needs_few_probes() -> None:
    found = find_capacity(lambda qps: qps <= 1.87, low_qps=1.8, high_qps=2.0)
    assert len(found.probes) == 6
    assert [probe.met for probe in found.probes[:2]] == [True, False]


def test_no_rate_is_tried_twice() -> None:
    found = find_capacity(lambda qps: qps <= 0.3, low_qps=1.0, high_qps=2.0)
    rates = [probe.qps for probe in found.probes]
    assert len(rates) == len(set(rates))


def test_a_workload_that_never_passes_has_no_capacity() -> None:
    assert find_capacity(lambda qps: False, low_qps=1.0, high_qps=2.0).qps is None


def test_a_workload_that_always_passes_is_said_to_have_no_bound() -> None:
    found = find_capacity(lambda qps: True, low_qps=1.0, high_qps=2.0)
    assert not found.bounded
    assert found.qps is not None
    assert found.qps > 1e6


@pytest.mark.parametrize(("low", "high", "precision"), [(0.0, 1.0, 0.01), (2.0, 1.0, 0.01), (1.0, 2.0, 0.0)])
def test_an_empty_bracket_is_an_error(low: float, high: float, precision: float) -> None:
    with pytest.raises(ValueError, match="nothing to search"):
        find_capacity(lambda qps: True, low_qps=low, high_qps=high, precision=precision)
