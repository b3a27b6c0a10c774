from hypothesis import given
from hypothesis import strategies as st

from services.telemetry.largest import OTHER, Largest


def test_names_with_the_most_have_their_own_series_and_the_rest_share_one() -> None:
    shown = Largest(num_shown=2).follow({"a": 1.0, "b": 5.0, "c": 3.0, "d": 1.0})
    assert shown == {"b": 5.0, "c": 3.0, OTHER: 2.0}


def test_there_is_no_rest_where_all_have_their_own() -> None:
    assert Largest(num_shown=2).follow({"a": 1.0, "b": 5.0}) == {"a": 1.0, "b": 5.0}


def test_what_a_name_had_before_it_was_shown_stays_with_the_rest() -> None:
    largest = Largest(num_shown=1)
    largest.follow({"a": 4.0, "b": 3.0})
    assert largest.follow({"a": 4.0, "b": 10.0}) == {"b": 7.0, OTHER: 3.0}
    assert largest.follow({"a": 12.0, "b": 10.0}) == {"a": 12.0, OTHER: 3.0}


def test_a_tenant_that_is_called_other_is_one_of_the_others() -> None:
    assert Largest(num_shown=2).follow({OTHER: 9.0, "a": 1.0}) == {"a": 1.0, OTHER: 9.0}


names = st.sampled_from("abcdef")


@given(st.lists(st.dictionaries(names, st.integers(0, 9))), st.integers(1, 4))
def test_no_series_ever_falls_and_together_they_are_all_there_was(looks: list[dict[str, int]], num_shown: int) -> None:
    largest, totals, newest = Largest(num_shown), dict.fromkeys("abcdef", 0.0), {}
    for gains in looks:
        for name, gain in gains.items():
            totals[name] += gain
        shown = largest.follow(totals)
        assert len(shown) <= num_shown + 1
        for name, value in shown.items():
            assert value >= newest.get(name, 0.0)
        newest.update(shown)
    assert sum(newest.values()) == sum(totals.values())
