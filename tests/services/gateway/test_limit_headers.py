"""Limits as headers: which are shown, and how they are written."""

from typing import Any

import pytest

from policies.admission.limits.items import LimitState
from services.gateway.limit_headers import anthropic_limits, duration, openai_limits, queue_place

TOLD_S = 1_700_000_000.0
"""2023-11-14T22:13:20Z."""


def state(dimension: Any, limit: int, remaining: int, full_in_s: float = 0.0, **more: Any) -> LimitState:
    options = {"scope": "key", "subject": "one", "period_s": 60} | more
    return LimitState(dimension=dimension, limit=limit, remaining=remaining, full_in_s=full_in_s, **options)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.012, "12ms"),
        (0.0001, "1ms"),
        (0.9991, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (8.641, "8.641s"),
        (59.9999, "1m0s"),
        (90.951, "1m30.951s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (86_399.5, "23h59m59.5s"),
        (86_400, "24h0m0s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_openais_headers_say_limit_rest_and_time_until_full() -> None:
    states = [state("requests", 60, 59, 1.0), state("total_tokens", 60_000, 58_210, 1.79)]
    assert openai_limits(states, TOLD_S, TOLD_S) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "60000",
        "x-ratelimit-remaining-tokens": "58210",
        "x-ratelimit-reset-tokens": "1.79s",
        "RateLimit-Policy": '"requests";q=60;w=60, "tokens";q=60000;w=60',
        "RateLimit": '"requests";r=59;t=1, "tokens";r=58210;t=2',
    }


def test_anthropics_headers_tell_input_from_output_and_say_when_it_is_full() -> None:
    states = [
        state("requests", 60, 59, 1.0),
        state("prompt_tokens", 1000, 10, 59.4),
        state("output_tokens", 500, 7, 0.2),
        state("total_tokens", 900, 8, 86_400, period_s=86_400),
    ]
    headers = anthropic_limits(states, TOLD_S, TOLD_S)
    head = "anthropic-ratelimit"
    assert {name: value for name, value in headers.items() if name.startswith(head)} == {
        f"{head}-requests-limit": "60",
        f"{head}-requests-remaining": "59",
        f"{head}-requests-reset": "2023-11-14T22:13:21Z",
        f"{head}-tokens-limit": "900",
        f"{head}-tokens-remaining": "8",
        f"{head}-tokens-reset": "2023-11-15T22:13:20Z",
        f"{head}-input-tokens-limit": "1000",
        f"{head}-input-tokens-remaining": "10",
        f"{head}-input-tokens-reset": "2023-11-14T22:14:20Z",
        f"{head}-output-tokens-limit": "500",
        f"{head}-output-tokens-remaining": "7",
        f"{head}-output-tokens-reset": "2023-11-14T22:13:21Z",
    }
    assert headers["RateLimit"] == (
        '"requests";r=59;t=1, "input-tokens";r=10;t=60, "output-tokens";r=7;t=1, "tokens";r=8;t=86400'
    )


@pytest.mark.parametrize("write", [openai_limits, anthropic_limits])
def test_a_limit_that_is_off_has_no_header(write: Any) -> None:
    assert write([], TOLD_S, TOLD_S) == {}
    assert not [name for name in write([state("requests", 9, 0)], TOLD_S, TOLD_S) if "tokens" in name]


def test_of_several_scopes_the_one_with_the_least_left_is_shown() -> None:
    states = [state("requests", 60, 30), state("requests", 1000, 20, scope="tenant")]
    assert openai_limits(states, TOLD_S, TOLD_S)["x-ratelimit-limit-requests"] == "1000"
    assert openai_limits(states[::-1], TOLD_S, TOLD_S)["x-ratelimit-remaining-requests"] == "20"


def test_of_several_periods_the_one_with_the_smallest_share_left_is_shown() -> None:
    states = [state("requests", 60, 50), state("requests", 10_000, 100, period_s=86_400)]
    assert openai_limits(states, TOLD_S, TOLD_S)["x-ratelimit-remaining-requests"] == "100"


def test_limits_of_one_dimension_have_names_of_their_own() -> None:
    states = [
        state("requests", 60, 50, 10),
        state("requests", 10_000, 100, 20, period_s=86_400),
        state("requests", 600, 90, 30, scope="tenant"),
        state("concurrency", 4, 3),
        state("concurrency", 8, 2, scope="tenant"),
    ]
    headers = openai_limits(states, TOLD_S, TOLD_S)
    assert headers["RateLimit-Policy"] == (
        '"requests-key-60s";q=60;w=60, "requests-key-86400s";q=10000;w=86400, "requests-tenant-60s";q=600;w=60, '
        '"concurrency-key";q=4, "concurrency-tenant";q=8'
    )
    assert headers["RateLimit"] == (
        '"requests-key-60s";r=50;t=10, "requests-key-86400s";r=100;t=20, "requests-tenant-60s";r=90;t=30, '
        '"concurrency-key";r=3, "concurrency-tenant";r=2'
    )


def test_a_limit_in_debt_has_nothing_left_rather_than_less() -> None:
    headers = openai_limits([state("total_tokens", 100, -30, 90)], TOLD_S, TOLD_S)
    assert headers["x-ratelimit-remaining-tokens"] == "0"
    assert headers["RateLimit"] == '"tokens";r=0;t=90'


def test_what_passed_since_a_limit_was_told_is_taken_off_and_an_earlier_clock_adds_nothing() -> None:
    states = [state("requests", 60, 0, 10.0)]
    assert openai_limits(states, TOLD_S, TOLD_S + 4)["x-ratelimit-reset-requests"] == "6s"
    assert openai_limits(states, TOLD_S, TOLD_S + 40)["x-ratelimit-reset-requests"] == "0s"
    assert openai_limits(states, TOLD_S, TOLD_S - 40)["x-ratelimit-reset-requests"] == "10s"
    reset = anthropic_limits(states, TOLD_S, TOLD_S + 4)["anthropic-ratelimit-requests-reset"]
    assert reset == "2023-11-14T22:13:30Z"


def test_a_place_in_the_queue_is_said_if_it_is_known() -> None:
    assert queue_place(None, None) == {}
    assert queue_place(0, 0.0) == {"x-queue-position": "0", "x-queue-wait-ms": "0"}
    assert queue_place(7, 1.2345) == {"x-queue-position": "7", "x-queue-wait-ms": "1235"}
