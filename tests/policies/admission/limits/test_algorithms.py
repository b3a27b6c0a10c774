"""Exact in integers: no limit is off by one unit or by one nanosecond."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.admission.limits.algorithms import ALGORITHMS, NS_PER_S, Gcra, SlidingLog, TokenBucket

Rate = tuple[int, int, int]
RATES = st.tuples(st.integers(1, 200), st.integers(1, 300), st.sampled_from([1, 7, 60, 86_400]))
"""Limit, burst and period in seconds."""
STEPS = st.lists(
    st.tuples(st.integers(0, 30 * NS_PER_S), st.integers(1, 60), st.one_of(st.none(), st.integers(0, 90))),
    max_size=40,
)
"""Nanoseconds since the step before, an amount, and what it turns out to be (None: nobody says)."""


@given(RATES, STEPS)
def test_gcra_and_the_token_bucket_agree_on_every_decision(
    rate: Rate, steps: list[tuple[int, int, int | None]]
) -> None:
    limit, burst, period_s = rate
    gcra, bucket = (kind(limit, burst, period_s * NS_PER_S) for kind in (Gcra, TokenBucket))
    now = 10**18
    for request, (elapsed, amount, actual) in enumerate(steps):
        now += elapsed
        if amount <= burst:
            assert gcra.wait_ns(amount, now) == bucket.wait_ns(amount, now)
            if not gcra.wait_ns(amount, now):
                gcra.take(request, amount, now)
                bucket.take(request, amount, now)
                if actual is not None:
                    gcra.correct(request, amount, actual, now)
                    bucket.correct(request, amount, actual, now)
        assert (gcra.left(now), gcra.used(now)) == (bucket.left(now), bucket.used(now))
        assert gcra.full_in_ns(now) == bucket.full_in_ns(now)
        assert 0 <= gcra.left(now) <= burst, "a refund lifted it above full"


@given(RATES, STEPS)
def test_a_bucket_never_lets_through_more_than_its_burst_and_its_rate(
    rate: Rate, steps: list[tuple[int, int, int | None]]
) -> None:
    limit, burst, period_s = rate
    bucket = TokenBucket(limit, burst, period_s * NS_PER_S)
    now, accepted = 0, []
    for request, (elapsed, amount, _) in enumerate(steps):
        now += elapsed
        if not bucket.wait_ns(amount, now):
            bucket.take(request, amount, now)
            accepted.append((now, amount))
    for first, (since, _) in enumerate(accepted):
        total = 0
        for until, amount in accepted[first:]:
            total += amount
            assert total * period_s * NS_PER_S <= burst * period_s * NS_PER_S + (until - since) * limit


@given(st.integers(1, 60), STEPS)
def test_the_log_never_holds_more_than_the_limit_in_any_period_both_ends_included(
    limit: int, steps: list[tuple[int, int, int | None]]
) -> None:
    log, now, accepted = SlidingLog(limit, 0, 60 * NS_PER_S), 0, deque[tuple[int, int]]()
    for request, (elapsed, amount, _) in enumerate(steps):
        now += elapsed
        if amount <= limit and not log.wait_ns(amount, now):
            log.take(request, amount, now)
            accepted.append((now, amount))
    for since, _ in accepted:
        assert sum(amount for at, amount in accepted if since <= at <= since + 60 * NS_PER_S) <= limit


@given(st.sampled_from(["gcra", "token_bucket", "sliding_log"]), RATES, STEPS)
def test_a_request_passes_exactly_after_its_wait_and_not_a_nanosecond_before(
    algorithm: str, rate: Rate, steps: list[tuple[int, int, int | None]]
) -> None:
    limit, burst, period_s = rate
    meter = ALGORITHMS[algorithm](limit, burst, period_s * NS_PER_S)
    most = limit if algorithm == "sliding_log" else burst
    now = 10**18
    for request, (elapsed, amount, actual) in enumerate(steps):
        now += elapsed
        if amount > most:
            continue
        wait = meter.wait_ns(amount, now)
        assert wait is not None
        if wait:
            copy = ALGORITHMS[algorithm](limit, burst, period_s * NS_PER_S)
            copy.restore(meter.state(), 0)
            assert copy.wait_ns(amount, now + wait - 1) == 1
            assert copy.wait_ns(amount, now + wait) == 0
        else:
            meter.take(request, amount, now)
            if actual is not None:
                meter.correct(request, amount, actual, now)


@pytest.mark.parametrize("algorithm", ["gcra", "token_bucket", "sliding_log"])
def test_it_is_full_exactly_when_it_says(algorithm: str) -> None:
    meter = ALGORITHMS[algorithm](7, 7, 60 * NS_PER_S)
    meter.take(1, 3, 5)
    full_in = meter.full_in_ns(6)
    assert (meter.used(6 + full_in - 1), meter.used(6 + full_in)) == ((3, 0) if algorithm == "sliding_log" else (1, 0))


def test_what_turns_out_to_be_more_is_a_debt_that_the_next_caller_waits_for() -> None:
    bucket = TokenBucket(60, 60, 60 * NS_PER_S)
    bucket.take(1, 60, 0)
    bucket.correct(1, 60, 90, 0)
    assert (bucket.left(0), bucket.used(0)) == (0, 90)
    assert bucket.wait_ns(1, 0) == 31 * NS_PER_S


def test_a_size_that_changes_keeps_what_was_taken_and_its_new_rate_brings_it_back() -> None:
    for kind in (Gcra, TokenBucket):
        meter = kind(60, 60, 60 * NS_PER_S)
        meter.take(1, 60, 0)
        meter.resize(10, 10, 30 * NS_PER_S)
        assert (meter.used(30 * NS_PER_S), meter.left(30 * NS_PER_S)) == (30, 0)
        assert meter.wait_ns(1, 30 * NS_PER_S) == 126 * NS_PER_S


def test_the_log_refuses_the_request_that_comes_as_the_period_ends_and_lets_in_the_next() -> None:
    log = SlidingLog(1, 0, 60 * NS_PER_S)
    log.take(1, 1, 0)
    assert log.wait_ns(1, 60 * NS_PER_S) == 1
    assert log.wait_ns(1, 60 * NS_PER_S + 1) == 0


def test_the_log_gives_back_what_its_own_request_took_and_nothing_once_that_has_left() -> None:
    log = SlidingLog(10, 0, 60 * NS_PER_S)
    log.take(1, 4, 0)
    log.take(2, 4, 30 * NS_PER_S)
    log.correct(1, 4, 1, 31 * NS_PER_S)
    assert log.used(31 * NS_PER_S) == 5
    log.correct(1, 1, 0, 70 * NS_PER_S)
    assert log.used(70 * NS_PER_S) == 4
    log.correct(1, 0, 2, 71 * NS_PER_S)
    assert log.used(71 * NS_PER_S) == 6


def test_a_gauge_knows_how_many_are_there_but_not_when_one_leaves() -> None:
    gauge = ALGORITHMS["gauge"](2, 0, 60 * NS_PER_S)
    gauge.take(1, 1, 0)
    gauge.take(2, 1, 0)
    assert (gauge.wait_ns(1, 0), gauge.left(0), gauge.full_in_ns(0)) == (None, 0, 0)
    gauge.correct(1, 1, 0, 5)
    assert (gauge.wait_ns(1, 5), gauge.left(5), gauge.used(5)) == (0, 1, 1)
    gauge.resize(1, 0, 6)
    assert gauge.wait_ns(1, 6) is None
