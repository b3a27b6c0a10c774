"""Counts and times of tokens, as columns."""

import numpy as np
import pytest

from policies.simulation.tokens import TokenTimes


def test_the_first_token_of_a_request_makes_no_gap_and_is_told() -> None:
    tokens = TokenTimes(num_requests=3, num_tenants=2)
    tokens.begin(1, tenant="a", slo_class="paid")
    tokens.begin(3, tenant="b", slo_class="free")
    assert tokens.add(np.array([1, 3]), 1.0).tolist() == [1, 3]
    assert tokens.add(np.array([3]), 1.5).tolist() == []
    assert tokens.add(np.array([3, 1]), 2.0).tolist() == []
    assert tokens.gaps_s() == {"paid": [pytest.approx(1.0)], "free": [pytest.approx(0.5)] * 2}
    assert tokens.num_tokens.tolist() == [0, 2, 0, 3]


def test_a_tenants_tokens_are_those_of_all_its_requests() -> None:
    tokens = TokenTimes(num_requests=2, num_tenants=1)
    for request in (1, 2):
        tokens.begin(request, tenant="a", slo_class="free")
    tokens.add(np.array([1, 2]), 0.0)
    tokens.add(np.array([2]), 1.0)
    assert tokens.of_tenant("a") == 3
    assert tokens.of_tenant("stranger") == 0


def test_without_a_token_there_are_no_gaps() -> None:
    assert TokenTimes(num_requests=1, num_tenants=1).gaps_s() == {}
