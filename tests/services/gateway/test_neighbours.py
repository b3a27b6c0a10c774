"""Which of the services behind a gateway is given what."""

from typing import Any

import pytest

from services.framing import Identity
from services.gateway.neighbours import Neighbours


class Line:
    """A stream, as far as it matters who is at its end."""

    def __init__(self, service: str, instance: str = "0") -> None:
        self.peer = Identity(service, instance)


@pytest.fixture
def connected() -> tuple[Neighbours, Any, Any]:
    neighbours, first, second = Neighbours(), Line("admission", "0"), Line("admission", "1")
    for stream in (first, second, Line("scheduler")):
        neighbours.opened(stream)  # type: ignore[arg-type]
    return neighbours, first, second


def test_admission_processes_take_turns(connected: Any) -> None:
    neighbours, first, second = connected
    assert {neighbours.admission() for _ in range(2)} == {first, second}
    assert [neighbours.admission() for _ in range(4)].count(first) == 2


def test_one_that_does_not_read_is_passed_over_until_it_does(connected: Any) -> None:
    neighbours, first, second = connected
    neighbours.stalled(first)
    assert [neighbours.admission() for _ in range(2)] == [second, second]
    assert neighbours.missing() == []
    neighbours.stalled(second)
    assert not neighbours.has_admission
    assert neighbours.missing() == ["admission does not read its stream"]
    neighbours.resumed(first)
    assert neighbours.admission() is first


def test_an_older_connection_that_closes_changes_nothing(connected: Any) -> None:
    neighbours, first, second = connected
    again = Line("admission", "0")
    neighbours.opened(again)
    assert not neighbours.closed(first)
    assert neighbours.is_connected(again)
    assert not neighbours.is_connected(first)
    assert neighbours.closed(again)
    assert neighbours.admission() is second


def test_what_is_missing_is_named() -> None:
    assert Neighbours().missing() == ["no stream to admission", "no stream to scheduler"]
    assert Neighbours().admission() is None
    assert Neighbours().scheduler is None
