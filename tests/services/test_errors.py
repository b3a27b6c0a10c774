"""Every row of the table of refusals, in both dialects."""

import json

import pytest

from services.errors import FORMS, RequestError

INVALID = "invalid_request_error"


@pytest.mark.parametrize(
    ("code", "dimension", "openai", "anthropic"),
    [
        ("rate_limit_exceeded", "requests", (429, "requests"), (429, "rate_limit_error")),
        ("rate_limit_exceeded", "prompt_tokens", (429, "tokens"), (429, "rate_limit_error")),
        ("rate_limit_exceeded", "output_tokens", (429, "tokens"), (429, "rate_limit_error")),
        ("rate_limit_exceeded", "total_tokens", (429, "tokens"), (429, "rate_limit_error")),
        ("rate_limit_exceeded", "concurrency", (429, "concurrency"), (429, "rate_limit_error")),
        ("queue_full", "", (429, "requests"), (429, "rate_limit_error")),
        ("queue_full", "queued", (429, "requests"), (429, "rate_limit_error")),
        ("queue_timeout", "", (503, "server_error"), (529, "overloaded_error")),
        ("would_be_late", "", (503, "server_error"), (529, "overloaded_error")),
        ("no_capacity", "", (503, "server_error"), (529, "overloaded_error")),
        ("draining", "", (503, "server_error"), (529, "overloaded_error")),
        ("admission_lost", "", (503, "server_error"), (529, "overloaded_error")),
        ("a_code_of_tomorrow", "", (503, "server_error"), (529, "overloaded_error")),
        ("request_exceeds_limit", "total_tokens", (400, INVALID), (400, INVALID)),
        ("context_length_exceeded", "", (400, INVALID), (400, INVALID)),
        ("client_gone", "", (499, "client_error"), (499, INVALID)),
        ("invalid_api_key", "", (401, INVALID), (401, "authentication_error")),
        ("wrong_key_scope", "", (403, "permission_error"), (403, "permission_error")),
        ("model_not_found", "", (404, INVALID), (404, "not_found_error")),
        ("body_too_large", "", (413, INVALID), (413, "request_too_large")),
        ("output_failed", "", (500, "server_error"), (500, "api_error")),
        ("scheduler_lost", "", (502, "server_error"), (502, "api_error")),
    ],
)
def test_a_refusal_has_its_own_status_type_and_code_in_each_dialect(
    code: str, dimension: str, openai: tuple[int, str], anthropic: tuple[int, str]
) -> None:
    error = RequestError(code, "the sentence", dimension=dimension)
    document = json.loads(error.body)
    assert (error.status, document["error"]["type"]) == openai
    assert document == {"error": {"message": "the sentence", "type": openai[1], "param": None, "code": code}}
    document = json.loads(error.anthropic_body)
    assert (error.anthropic_status, document["error"]["type"]) == anthropic
    assert document == {"type": "error", "error": {"type": anthropic[1], "message": "the sentence"}}


def test_refusals_for_different_reasons_can_be_told_apart() -> None:
    codes = ["rate_limit_exceeded", "queue_full", "queue_timeout", "request_exceeds_limit", "no_capacity"]
    assert len({RequestError(code, "").body for code in codes}) == len(codes)


@pytest.mark.parametrize(
    ("wait_s", "seconds", "milliseconds"),
    [
        (0.012, "1", "12"),
        (0.0120001, "1", "13"),
        (1.0, "1", "1000"),
        (1.0000004, "2", "1001"),
        (2.5, "3", "2500"),
        (60.000000001, "61", "60001"),
        (0.0, "1", "1"),
        # As binary fractions these are a little more than they should be.
        (0.57, "1", "570"),
        (1.1, "2", "1100"),
    ],
)
def test_a_wait_is_rounded_up_so_that_who_keeps_it_has_waited_enough(
    wait_s: float, seconds: str, milliseconds: str
) -> None:
    headers = RequestError("rate_limit_exceeded", "", retry_after_s=wait_s).headers
    assert headers == {"retry-after": seconds, "retry-after-ms": milliseconds}


@pytest.mark.parametrize("code", ["request_exceeds_limit", "context_length_exceeded", "rate_limit_exceeded"])
def test_without_a_wait_there_is_no_header_of_one(code: str) -> None:
    assert RequestError(code, "").headers == {}


@pytest.mark.parametrize("code", ["rate_limit_exceeded", "queue_full", "would_be_late"])
def test_a_client_is_told_not_to_sit_out_a_wait_of_more_than_two_minutes(code: str) -> None:
    assert "x-should-retry" not in RequestError(code, "", retry_after_s=120).headers
    headers = RequestError(code, "", retry_after_s=7200).headers
    assert headers == {"retry-after": "7200", "retry-after-ms": "7200000", "x-should-retry": "false"}


def test_what_is_overloaded_is_to_be_tried_again_in_a_second() -> None:
    overloaded = {code for code, form in FORMS.items() if form.anthropic_status == 529}
    assert overloaded == {
        *("cancelled", "draining", "no_capacity", "queue_timeout", "would_be_late", "admission_lost", "store_lost"),
        "too_many_connections",
    }
    assert {RequestError(code, "").headers["retry-after"] for code in overloaded} == {"1"}
