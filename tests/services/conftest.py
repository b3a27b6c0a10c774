"""Doubles for the ends of streams."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import pytest
import uvloop

from services.transport import Stream
from services.wire import AnyMessage

T = TypeVar("T")
WAIT_S = 10.0
"""Only reached when something is broken."""


class Recorder:
    """A receiver that keeps what happened and can wait for it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.messages: list[AnyMessage] = []
        self.streams: list[Stream] = []
        self._changed = asyncio.Event()

    def opened(self, stream: Stream) -> None:
        self.streams.append(stream)
        self._note(f"opened {stream.peer.service} {stream.peer.instance}")

    def received(self, stream: Stream, message: AnyMessage) -> None:
        self.messages.append(message)
        self._note(f"received {type(message).__name__}")

    def closed(self, stream: Stream, reason: str) -> None:
        self._note(f"closed {stream.peer.service}: {reason}")

    def stalled(self, stream: Stream) -> None:
        self._note("stalled")

    def resumed(self, stream: Stream) -> None:
        self._note("resumed")

    def _note(self, event: str) -> None:
        self.events.append(event)
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Return once the condition holds; it is looked at after each event."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def count(self, prefix: str, number: int = 1) -> list[str]:
        """Wait until that many events begin with the prefix."""
        await self.until(lambda: sum(event.startswith(prefix) for event in self.events) >= number)
        return [event for event in self.events if event.startswith(prefix)]

    async def message(self, kind: type[T], number: int = 1) -> T:
        """Wait for the n-th message of a type."""
        await self.until(lambda: sum(isinstance(message, kind) for message in self.messages) >= number)
        return [message for message in self.messages if isinstance(message, kind)][number - 1]


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop that the services run on."""
    return {"uvloop": uvloop.new_event_loop}
