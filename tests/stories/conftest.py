"""Fixtures of the stories."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deployed import House


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
