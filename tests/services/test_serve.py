"""What a service process does with what its supervisor gave it."""

import os
import socket
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from services import runtime, serve
from services.gateway import service


def test_what_a_supervisor_gave_is_not_handed_on_to_a_service_processs_own_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handed_on: dict[str, bool] = {}

    def serving(built: Any, run_folder: Path, pulse: int) -> int:
        del run_folder
        with built:
            handed_on.update(pulse=os.get_inheritable(pulse), socket=built.get_inheritable())
        return 0

    monkeypatch.setattr(runtime, "die_with_parent", lambda: None)
    monkeypatch.setattr(runtime, "set_up_logging", lambda name: None)
    monkeypatch.setattr(runtime, "serve", serving)
    monkeypatch.setattr(service, "build", lambda deployment, replica, listening: listening)
    read, pulse = os.pipe()
    with socket.socket() as listening:
        listening.listen()
        given = os.dup(listening.fileno())
        os.set_inheritable(given, True)
        os.set_inheritable(pulse, True)
        assert serve.run(Namespace(service="gateway", replica=1, pulse=pulse, socket=given)) == 0
    assert handed_on == {"pulse": False, "socket": False}
    for descriptor in (read, pulse):
        os.close(descriptor)


def test_a_service_gives_the_memory_of_long_bodies_back_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(serve, "give_back_freed_memory", lambda: chosen.append("given back"))
    monkeypatch.setattr(service, "build", lambda deployment: list(chosen))
    monkeypatch.setattr(runtime, "set_up_logging", lambda name: None)
    monkeypatch.setattr(runtime, "serve", lambda built, run_folder, pulse: 0 if built == ["given back"] else 1)
    assert serve.run(Namespace(service="gateway", replica=1, pulse=None, socket=None)) == 0
