"""Asking a running admission how things stand: for `fairlead fairness` and `fairlead usage`.

Owns one question and the wait for its answer. Whoever can read the streams' secret may ask about every tenant.
"""

import asyncio
import os
import time
from typing import Any

import msgspec

from services.policy_documents import CommandError
from services.runtime import StartError, open_link
from services.settings import Deployment
from services.transport import AddressError, Identity, Stream
from services.wire import AnyMessage
from services.wire_operator import Report, ReportAsked

OPERATOR = "operator"
CONNECT_S = 3.0
ANSWER_S = 10.0


def ask(deployment: Deployment, about: str, tenant: str = "", days: int = 1) -> Any:
    """The answer as admission gave it, decoded from JSON.

    Raises:
        CommandError: admission cannot be reached, does not answer, or says why it cannot.
    """
    document = asyncio.run(_ask(deployment, ReportAsked(1, about, tenant, days)))
    if isinstance(document, dict) and "error" in document:
        raise CommandError(document["error"])
    return document


async def _ask(deployment: Deployment, question: ReportAsked) -> Any:
    asker = _Asker(question)
    address = deployment.streams.admissions[0]
    try:
        link = open_link(deployment, address, Identity(OPERATOR, str(os.getpid()), time.time_ns()), asker)
    except (StartError, AddressError) as error:
        raise CommandError(str(error)) from error
    try:
        async with asyncio.timeout(CONNECT_S):
            await asker.connected.wait()
        async with asyncio.timeout(ANSWER_S):
            return msgspec.json.decode(await asker.answer)
    except TimeoutError as error:
        if asker.connected.is_set():
            raise CommandError(f"admission did not answer within {ANSWER_S:g} s") from error
        raise CommandError(f"no admission at {address}: this needs the services running") from error
    finally:
        await link.close()


class _Asker:
    """Receiver of admission's stream."""

    def __init__(self, question: ReportAsked) -> None:
        self.connected = asyncio.Event()
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._question = question

    def opened(self, stream: Stream) -> None:
        """Ask."""
        self.connected.set()
        stream.send(self._question)

    def received(self, stream: Stream, message: AnyMessage) -> None:
        """The answer; whatever else admission tells everybody is of no interest."""
        del stream
        if isinstance(message, Report) and not self.answer.done():
            self.answer.set_result(message.document)

    def closed(self, stream: Stream, reason: str) -> None:
        """It went away before it answered."""
        del stream
        if not self.answer.done():
            self.answer.set_exception(CommandError(f"admission went away: {reason}"))

    def stalled(self, stream: Stream) -> None:
        """Nothing much is sent."""

    def resumed(self, stream: Stream) -> None:
        """Nothing was held back."""
