"""The twin runs of the benchmark of refusals."""

from ops.bench import refusals


def test_under_an_overload_refusals_buy_goodput_and_few_of_them_are_false() -> None:
    twins = refusals.twins("sarathi", 6.0, seed=1, arrivals_s=40.0)
    assert twins.refused_share > 0.2
    assert twins.goodput_rps > 1.5 * twins.goodput_without_rps
    assert twins.false_share < 0.05


def test_with_room_to_spare_hardly_anybody_is_refused() -> None:
    twins = refusals.twins("fairlead", 0.5, seed=1, arrivals_s=40.0)
    assert twins.refused_share < 0.01
    assert twins.goodput_rps >= 0.99 * twins.goodput_without_rps
