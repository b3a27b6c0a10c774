"""Questions that a gateway asks of admission about a tenant, and their answers.

Owns those under way; knows neither HTTP nor what the answers mean.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from services.errors import RequestError
from services.streams import Stream
from services.wire_operator import Report, ReportAsked

ANSWER_S = 3.0


class Questions:
    """What was asked of admission and not answered yet.

    Args:
        admission: its stream, None while there is none.
    """

    def __init__(self, admission: Callable[[], Stream | None]) -> None:
        self._admission = admission
        self._answers: dict[int, asyncio.Future[bytes]] = {}
        self._number = 0

    async def ask(self, about: str, tenant: str, days: int = 1) -> dict[str, Any]:
        """The answer, decoded.

        Raises:
            RequestError: admission cannot be reached, is too slow or says why it cannot.
        """
        stream = self._admission()
        if stream is None:
            raise RequestError("admission_lost", "admission cannot be reached at the moment; try again")
        self._number += 1
        number = self._number
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        stream.send(ReportAsked(number, about, tenant, days))
        try:
            async with asyncio.timeout(ANSWER_S):
                document: dict[str, Any] = msgspec.json.decode(await answer)
        except TimeoutError as error:
            message = f"admission did not answer within {ANSWER_S:g} s; try again"
            raise RequestError("admission_lost", message) from error
        finally:
            del self._answers[number]
        if "error" in document:
            raise RequestError("admission_lost", f"{document['error']}; try again")
        return document

    def answered(self, report: Report) -> None:
        """Admission's word; too late, it is for nobody."""
        answer = self._answers.get(report.number)
        if answer is not None and not answer.done():
            answer.set_result(report.document)
