"""Whose form an endpoint speaks: how errors, limits and request ids look in it.

A row each; knows no endpoint.
"""

from collections.abc import Callable
from typing import NamedTuple

from services.errors import RequestError
from services.gateway.limit_headers import LimitHeaders, anthropic_limits, openai_limits


class Dialect(NamedTuple):
    """What differs between the answers of endpoints."""

    status: Callable[[RequestError], int]
    body: Callable[[RequestError], bytes]
    limits: LimitHeaders
    id_header: str
    """What its clients call the id of an answer, which has the name `x-request-id` too."""


OPENAI = Dialect(lambda error: error.status, lambda error: error.body, openai_limits, "x-request-id")
ANTHROPIC = Dialect(
    lambda error: error.anthropic_status, lambda error: error.anthropic_body, anthropic_limits, "request-id"
)
