"""The window: what fits, and how much was really in flight at once."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.admission.window import Place, Window

histories = st.integers(min_value=0, max_value=2**32)


@settings(max_examples=100, deadline=None)
@given(seed=histories, growing=st.booleans())
def test_the_peak_is_the_largest_sum_of_final_sizes_at_any_release(seed: int, growing: bool) -> None:
    draw = random.Random(seed)  # noqa: S311  a seeded history, not a secret
    window = Window()
    in_flight: list[Place] = []
    releases: list[list[Place]] = []
    final: dict[int, int] = {}
    for _ in range(60):
        match draw.choice(["take", "take", "end", "grow", "look"]):
            case "take":
                place = window.take(draw.randint(1, 50))
                in_flight.append(place)
                releases.append(list(in_flight))
            case "end" if in_flight:
                place = in_flight.pop(draw.randrange(len(in_flight)))
                window.give_back(place)
            case "grow" if in_flight and growing:
                window.grow(draw.choice(in_flight), draw.randint(1, 30))
        final.update((id(place), place.size_tokens) for places in releases for place in places)
        assert window.reserved_tokens == sum(place.size_tokens for place in in_flight)
        sums = [sum(final[id(place)] for place in places) for places in releases]
        assert window.peak_tokens == max(sums, default=0)


def test_a_size_fits_up_to_the_limit_and_any_alone() -> None:
    window = Window()
    window.limit_tokens, window.max_requests = 100, 2
    assert window.fits(1000)
    place = window.take(60)
    assert window.fits(40)
    assert not window.fits(41)
    window.take(10)
    assert not window.fits(1)
    window.give_back(place)
    with pytest.raises(ValueError, match="no place in this window"):
        window.give_back(place)
