"""The shared store's scripts decide as LimitBook does: same items, same clock, same answers."""

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.admission.limits.book import LimitBook
from policies.admission.limits.items import LimitItem
from policies.events import OverLimit, Reserved
from services.admission.redis_limits import SCRIPT, FollowedLimits
from services.admission.redis_operations import (
    AdjustOperation,
    Operation,
    Place,
    ReserveOperation,
    Session,
    encode,
    read_answer,
)

pytestmark = pytest.mark.redis

NS_PER_S = 10**9
START_S = 1_795_000_000

places = itertools.count()


class Store:
    """The scripts in a real server, told the time."""

    def __init__(self, client: Any) -> None:
        self._script = client.register_script(SCRIPT)
        self._session = Session(Place(f"test-{next(places)}", "1"), "session", 10.0)
        self._numbers = itertools.count()
        self._followed = FollowedLimits()

    def call(self, now_ns: int, operation: Operation) -> Any:
        keys, [head, *values] = encode(self._session, next(self._numbers), [operation], None)
        asked = msgspec.msgpack.decode(head) | {"now": divmod(now_ns, NS_PER_S)}
        answer = read_answer(self._script(keys=keys, args=[msgspec.msgpack.encode(asked), *values]))
        assert answer.now == divmod(now_ns, NS_PER_S)
        return answer.answers[0]

    def reserve(self, request: int, items: tuple[LimitItem, ...], now_ns: int) -> Reserved | OverLimit:
        taken, states = self.call(now_ns, ReserveOperation(request, items))
        return self._followed.answered(request, items, states, now_ns, taken=taken)

    def adjust(self, request: int, items: list[tuple[LimitItem, int]], now_ns: int) -> None:
        changes = [(item, actual - item.amount) for item, actual in items]
        self.call(now_ns, AdjustOperation(str(request), changes))


@pytest.fixture(scope="module")
def client(one_redis_server: Any) -> Any:
    with one_redis_server.client() as client:
        yield client


def an_item(algorithm: str, subject: str, amount: int, sizes: tuple[int, int], period_s: int) -> LimitItem:
    dimension = "concurrency" if algorithm == "gauge" else "total_tokens"
    limit, burst = sizes
    if algorithm in ("gauge", "sliding_log"):
        burst = limit
    return LimitItem("tenant", subject, dimension, algorithm, amount, limit, period_s, burst)  # type: ignore[arg-type]


SIZES = st.sampled_from([(1, 1), (7, 3), (60, 60), (60, 100), (999_983, 1_000_003), (2_000_000_011, 10**9)])
MIXED = st.lists(
    st.tuples(
        st.sampled_from(["gcra", "token_bucket", "sliding_log", "gauge"]),
        st.sampled_from(["u", "v"]),
        st.integers(1, 9),
        SIZES,
        st.sampled_from([60, 86400]),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda item: (item[0], item[1], item[4]),
)
GAPS_NS = st.one_of(
    st.integers(0, 5),
    st.integers(0, 10**9),
    st.integers(0, 200 * 10**9),
    st.integers(0, 10**15),
    st.sampled_from([60 * 10**9, 60 * 10**9 + 1, 86400 * 10**9]),
)
STEPS = st.lists(
    st.tuples(GAPS_NS, MIXED, st.booleans(), st.one_of(st.none(), st.integers(0, 20))), min_size=1, max_size=20
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_the_scripts_answer_every_sequence_as_the_book_does(client: Any, steps: Any) -> None:
    store, book = Store(client), LimitBook()
    now_ns = START_S * NS_PER_S
    for request, (gap_ns, mixed, is_large, correction) in enumerate(steps):
        now_ns += gap_ns
        items = tuple(
            an_item(algorithm, subject, part * (max(1, sizes[1] // 4) if is_large else 1), sizes, period_s)
            for algorithm, subject, part, sizes, period_s in mixed
        )
        expected = book.reserve(request, items, now_ns)
        assert store.reserve(request, items, now_ns) == expected
        match expected:
            case Reserved() if correction is not None:
                now_ns += gap_ns % 1000
                actual = [(item, correction * max(1, item.amount // 5)) for item in items]
                book.adjust(request, actual, now_ns)
                store.adjust(request, actual, now_ns)
            case OverLimit(wait_s=float() as wait_s) if wait_s < 10**5:
                now_ns += round(wait_s * NS_PER_S) - 1
                for _ in range(2):
                    assert store.reserve(request, items, now_ns) == book.reserve(request, items, now_ns)
                    now_ns += 1
