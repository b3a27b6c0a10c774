"""What is refused before anything is restarted."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from services.children import Place
from services.control import Asked
from services.crashes import Crashes
from services.restarts import Restarts
from services.settings import Deployment

NAMES = {"executor": "executor", "admission": "admission", "admission-2": "admission", "gateway": "gateway"}


class Caller:
    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []

    def say(self, *said: str) -> None:
        self.heard.append(said)

    def close(self) -> None:
        self.heard.append(("closed",))


@pytest.mark.parametrize("asked", [["gateway"], ["admission-2"]])
def test_a_policy_that_a_process_of_admission_would_not_watch_is_refused(asked: list[str]) -> None:
    places = {name: Place(name, service, 0, Crashes(1, 1.0)) for name, service in NAMES.items()}
    deployment = Deployment().resolved()
    adopted: list[Any] = []
    new = msgspec.structs.replace(deployment, policy="/elsewhere.yaml")
    restarts = Restarts(places, lambda _: pytest.fail("it was begun"), [], lambda: new, adopted.append)
    caller = Caller()
    control: Any = SimpleNamespace(questions=lambda: [(caller, Asked(asked))])
    restarts.answer(control, deployment, 0.0, leave_s=1.0)
    (why, state), *rest = caller.heard
    assert why.startswith("policy: admission would go on with that of before; nothing was restarted.")
    assert (state, rest, adopted) == ("failed", [("closed",)], [])
