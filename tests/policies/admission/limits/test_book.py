"""All of what is asked, or nothing."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.admission.limits.algorithms import NS_PER_S
from policies.admission.limits.book import LimitBook
from policies.admission.limits.items import LimitItem
from policies.events import OverLimit, Reserved


def requests(amount: int = 1, **more: Any) -> LimitItem:
    given: dict[str, Any] = {"limit": 60, "burst": 60, **more}
    return LimitItem("key", "k1", "requests", "gcra", amount, **given)


def tokens(amount: int, **more: Any) -> LimitItem:
    given: dict[str, Any] = {"limit": 600, "burst": 600, **more}
    return LimitItem("tenant", "acme", "total_tokens", "token_bucket", amount, **given)


def open_requests(limit: int = 1) -> LimitItem:
    return LimitItem("tenant", "acme", "concurrency", "gauge", 1, limit)


@dataclass
class Desk:
    book: LimitBook = field(default_factory=LimitBook)
    now_ns: int = 10**18
    last: int = 0

    def ask(self, *items: LimitItem) -> Reserved | OverLimit:
        self.last += 1
        answer = self.book.reserve(self.last, items, self.now_ns)
        self.book.check()
        return answer

    def left(self, item: LimitItem) -> int:
        return self.book.states([item], self.now_ns)[0].remaining


def test_what_fits_is_taken_of_every_limit_and_the_answer_says_what_is_left() -> None:
    answer = Desk().ask(requests(), tokens(150))
    assert isinstance(answer, Reserved)
    assert [(state.dimension, state.remaining, state.full_in_s) for state in answer.limits] == [
        ("requests", 59, 1.0),
        ("total_tokens", 450, 15.0),
    ]


def test_where_one_limit_refuses_nothing_is_taken_of_the_others() -> None:
    desk = Desk()
    desk.ask(tokens(600))
    answer = desk.ask(requests(), tokens(100))
    assert isinstance(answer, OverLimit)
    assert (answer.item.dimension, answer.wait_s, answer.used) == ("total_tokens", 10.0, 600)
    assert [state.remaining for state in answer.limits] == [60, 0]
    assert desk.left(requests()) == 60


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_refusals_the_longest_wait_is_answered(order: int) -> None:
    desk = Desk()
    desk.ask(requests(60), tokens(600))
    answer = desk.ask(*[requests(30), tokens(100), open_requests()][::order])
    assert isinstance(answer, OverLimit)
    assert (answer.item.dimension, answer.wait_s) == ("requests", 30.0)


def test_a_gauge_is_named_where_nothing_else_refuses_and_promises_no_time() -> None:
    desk = Desk()
    desk.ask(open_requests())
    answer = desk.ask(requests(), open_requests())
    assert isinstance(answer, OverLimit)
    assert (answer.item.dimension, answer.wait_s, answer.never_fits) == ("concurrency", None, False)
    desk.ask(requests(60))
    answer = desk.ask(requests(), open_requests())
    assert isinstance(answer, OverLimit)
    assert (answer.item.dimension, answer.wait_s) == ("requests", 1.0)


def test_more_than_the_burst_never_fits_and_comes_before_every_wait() -> None:
    desk = Desk()
    desk.ask(requests(60))
    answer = desk.ask(requests(), tokens(601))
    assert isinstance(answer, OverLimit)
    assert (answer.item.dimension, answer.wait_s, answer.never_fits) == ("total_tokens", None, True)


def test_an_adjustment_gives_back_or_takes_more_and_never_lifts_above_full() -> None:
    desk = Desk()
    desk.ask(tokens(300))
    desk.book.adjust(1, [(tokens(300), 100)], desk.now_ns)
    assert desk.left(tokens(1)) == 500
    desk.book.adjust(1, [(tokens(100), 900)], desk.now_ns)
    assert desk.left(tokens(1)) == 0
    desk.now_ns += 3600 * NS_PER_S
    desk.book.adjust(1, [(tokens(900), 0)], desk.now_ns)
    assert desk.left(tokens(1)) == 600


def test_an_adjustment_of_a_limit_that_was_forgotten_takes_only_what_is_more() -> None:
    book = LimitBook()
    book.adjust(1, [(tokens(300), 100), (requests(1), 0)], 5)
    assert book.dump()["limits"] == {}
    book.adjust(1, [(tokens(300), 350)], 5)
    assert book.used(tokens(1), 5) == 50


def test_a_limit_of_which_nothing_is_taken_is_forgotten() -> None:
    desk = Desk()
    for number in range(1000):
        desk.ask(LimitItem("key", f"k{number}", "requests", "gcra", 1, 60, burst=60))
        desk.now_ns += NS_PER_S
    assert len(desk.book.dump()["limits"]) < 10


def test_limits_of_a_class_and_of_another_size_are_told_apart_by_name_only_where_they_are_others() -> None:
    assert requests().name == requests(5, limit=7, burst=7).name
    assert requests().name != requests(slo_class="paid").name
    assert requests().name != requests(period_s=86_400).name
    assert requests().name != requests(mode="only_when_saturated").name


def test_a_clock_that_is_set_back_stands_still() -> None:
    desk = Desk()
    desk.ask(requests(60))
    desk.now_ns -= 3600 * NS_PER_S
    answer = desk.ask(requests())
    assert isinstance(answer, OverLimit)
    assert answer.wait_s == 1.0


ITEMS = st.lists(
    st.one_of(
        st.integers(1, 30).map(requests),
        st.integers(1, 200).map(tokens),
        st.just(open_requests(3)),
        st.integers(1, 5).map(lambda k: LimitItem("model", "model", "requests", "sliding_log", k, 9)),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda item: item.name,
)


@given(st.lists(st.tuples(st.integers(0, 20 * NS_PER_S), ITEMS), max_size=25), st.sampled_from([0, -(10**15)]))
def test_a_book_goes_on_after_a_restart_where_it_was_even_with_the_clock_set_back(
    steps: list[tuple[int, list[LimitItem]]], shift_ns: int
) -> None:
    desk = Desk()
    for elapsed, items in steps:
        desk.now_ns += elapsed
        desk.ask(*items)
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(desk.book.dump()))
    again = LimitBook()
    again.load(kept, desk.now_ns + shift_ns)
    for elapsed, items in steps:
        desk.now_ns += elapsed
        assert again.reserve(1, items, desk.now_ns + shift_ns) == desk.book.reserve(1, items, desk.now_ns)
    assert {name: again.dump_one(name) is None for name in again.dump()["limits"]} == {
        name: desk.book.dump_one(name) is None for name in desk.book.dump()["limits"]
    }


def test_a_dump_that_names_no_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="a:b:c:1:leaky::hard is not the name of a limit"):
        LimitBook().load({"at_ns": 0, "limits": {"a:b:c:1:leaky::hard": [1, 1]}}, 0)


def test_whoever_keeps_the_state_hears_which_limits_changed() -> None:
    desk = Desk()
    desk.book.changed = {}
    desk.ask(requests(), tokens(5))
    assert list(desk.book.changed) == [requests().name, tokens(5).name]
    desk.book.changed = {}
    desk.now_ns += 3600 * NS_PER_S
    desk.ask(open_requests())
    assert desk.book.dump_one(requests().name) is None
    assert set(desk.book.changed) == {requests().name, tokens(5).name, open_requests().name}
