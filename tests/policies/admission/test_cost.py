"""Costs in parts and as a whole, and the largest cost per token that a bound needs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.admission.cost import Bound, Cost, Polynomial, Prices, cost_of
from policies.document.fairness import KvTokenTime, Quadratic, Table, Tokens, WeightedTokens

A10G = Quadratic(a=0.21001891, b=0.10075395, c=0.0039868, d=0.00324733, e=1.14601454)
TABLE = Table(prompt_tokens=(2, 10, 50), output_tokens=(0, 4, 20), costs=((1, 2, 8), (3, 4, 11), (9, 20, 90)))
COSTS: list[Cost] = [
    cost_of(kind)
    for kind in (
        WeightedTokens(3.0, 1.0, 0.5),
        Tokens(),
        A10G,
        TABLE,
        KvTokenTime(),
        Quadratic(a=1, b=9, c=-1e-7, e=50),
    )
]
counts = st.integers(min_value=1, max_value=80)


@pytest.mark.parametrize("cost", COSTS)
@given(prompt=counts, output=counts)
def test_a_prompt_and_its_tokens_add_up_to_the_whole(cost: Cost, prompt: int, output: int) -> None:
    parts = cost.whole(prompt, 0) + sum(cost.token(prompt, nth) for nth in range(1, output + 1))
    assert parts == pytest.approx(cost.whole(prompt, output))
    assert cost.per_token in (None, cost.token(prompt, output))


@pytest.mark.parametrize("cost", COSTS)
@given(prompt=counts, cached=counts)
def test_what_is_saved_is_never_more_than_the_prompt(cost: Cost, prompt: int, cached: int) -> None:
    assert 0.0 <= cost.saved(prompt, min(prompt, cached)) <= cost.whole(prompt, 0)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("most", [1, 2, 7, 30, 71])
def test_the_dearest_size_is_found_without_looking_at_all(cost: Cost, most: int) -> None:
    ratios = [cost.whole(p, q) / (p + q) for p in range(1, most + 1) for q in range(most - p + 1)]
    assert max(ratios) <= cost.dearest(most) * (1 + 1e-12)
    assert cost.dearest(most) <= 1.05 * max(ratios)


def test_the_dearest_size_may_be_between_the_ends() -> None:
    cost = Polynomial(1.0, 1.0, 1.0, 0.0, 0.0)
    assert cost.dearest(100) == pytest.approx(1 + 50 * 50 / 100)


def test_a_table_goes_on_beyond_its_ends_and_is_flat_before_its_first_prompt() -> None:
    cost = cost_of(TABLE)
    assert cost.whole(1, 0) == cost.whole(2, 0) == 1.0
    assert cost.whole(6, 2) == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert cost.whole(90, 0) == pytest.approx(15.0)
    assert cost.whole(50, 36) == pytest.approx(160.0)


def test_held_tokens_cost_a_step_for_the_prompt_and_one_for_each_token() -> None:
    cost = cost_of(KvTokenTime())
    assert cost.whole(10, 3) == 10 + 11 + 12 + 13
    assert cost.saved(10, 5) == 0.0


def test_cached_prompt_tokens_keep_the_share_of_their_price_that_the_policy_says() -> None:
    assert Prices(2.0, 3.0).saved(10, 4) == 8.0
    assert Prices(2.0, 3.0, 0.25).saved(10, 4) == 6.0
    assert cost_of(A10G).saved(10, 10) == pytest.approx(10 * 0.21001891)


def bound(*costs: Cost, longest: int = 10, refunds: bool = False) -> float:
    made = Bound()
    for cost in costs:
        made.allow(cost)
    made.released(longest)
    made.released(1)
    if refunds:
        made.refunds_prompts()
    return made.value(100)


def test_the_bound_is_the_papers_where_output_is_dearer_and_counts_the_longest_prompt_else() -> None:
    assert bound(Prices(1.0, 2.0)) == 200.0
    assert bound(Prices(3.0, 1.0)) == 120.0
    assert bound(Prices(3.0, 1.0), refunds=True) == 300.0
    assert bound(Prices(1.0, 2.0), refunds=True) == 200.0


def test_the_bound_remembers_every_price_that_was_in_force() -> None:
    assert bound(Prices(3.0, 1.0), Prices(1.0, 2.0)) == 210.0
    quadratic = cost_of(A10G)
    assert bound(quadratic) == pytest.approx(100 * quadratic.dearest(100))
    assert bound(Prices(30.0, 1.0), quadratic) == 3000.0


def test_nothing_in_flight_bounds_nothing() -> None:
    assert Bound().value(0) == 0.0
