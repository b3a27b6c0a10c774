"""How things stand for a tenant, asked of admission on its behalf: `/v1/fairlead/fairness` and `/v1/fairlead/usage`.

A tenant hears of itself alone: the name in a question is its key's, never the client's. An operator hears of all.
"""

from collections.abc import Callable

from aiohttp import web

from services.errors import RequestError
from services.gateway.intake import ADMIN, Caller
from services.gateway.questions import Questions
from services.gateway.replies import Replies

MAX_DAYS = 400
MAX_DIGITS = 9
"""Python reads no number of thousands of digits."""
MAX_SHOWN = 40


class Reports:
    """The two endpoints."""

    def __init__(self, questions: Questions, caller_of: Callable[[web.Request], Caller], replies: Replies) -> None:
        self._questions = questions
        self._caller_of = caller_of
        self._replies = replies

    async def fairness(self, request: web.Request) -> web.StreamResponse:
        """How the caller's tenant fares, or all for an operator, and how near to the bound the whole is."""
        return self._replies.json(request, await self._questions.ask("fairness", self._whose(request)))

    async def usage(self, request: web.Request) -> web.StreamResponse:
        """What the caller's tenant, or each for an operator, has used in the last `days`, today included."""
        whose = self._whose(request)
        given = request.query.get("days", "1")
        if not given.isdecimal() or len(given) > MAX_DIGITS or not 1 <= int(given) <= MAX_DAYS:
            message = f"days: {given[:MAX_SHOWN]!r} is no number of days from 1 to {MAX_DAYS}"
            raise RequestError("invalid_value", message, param="days")
        return self._replies.json(request, await self._questions.ask("usage", whose, int(given)))

    def _whose(self, request: web.Request) -> str:
        """The tenant to be told of; empty: all."""
        tenant, key = self._caller_of(request)
        return "" if key.scope == ADMIN else tenant.name
