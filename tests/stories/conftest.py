"""Fixtures of the stories."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deployed import House


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One deployment, with every invariant checked, for the stories that only ask it something."""
    started = House(tmp_path_factory.mktemp("shared")).start("--check")
    yield started
    assert started.stop() == 0, started.text
    assert "ended" not in started.text


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    """A function that starts a deployment; it is stopped when the test ends."""
    houses: list[House] = []

    def start(*arguments: str) -> House:
        houses.append(House(tmp_path))
        return houses[-1].start(*arguments)

    yield start
    for each in houses:
        if each.process is not None and each.process.poll() is None:
            each.stop()
