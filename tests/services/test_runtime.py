import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from services import runtime
from services.runtime import ReadyFile, StartError, read_secret, serve
from services.settings import Deployment

ROOT = Path(__file__).resolve().parents[2]


class Scripted:
    """A service that notes its life and does what the test says once it is ready."""

    name = "scripted"

    def __init__(self, folder: Path, act: Callable[["Scripted"], None]) -> None:
        self.ready_file = folder / "scripted.ready"
        self.life: list[str] = []
        self.act = act
        self.missing = "the other half"
        self.drained: asyncio.Event

    async def start(self) -> None:
        self.life.append("start")
        self.drained = asyncio.Event()

    def not_ready(self) -> str:
        missing, self.missing = self.missing, ""
        if self.ready_file.exists():
            self.life.append("ready")
            self.act(self)
            self.act = lambda _: None
        return missing

    async def drain(self) -> None:
        self.life.append("drain" if not self.ready_file.exists() else "drain while ready")
        await self.drained.wait()

    async def stop(self) -> None:
        self.life.append("stop")


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_service_is_ready_then_drains_then_stops(tmp_path: Path) -> None:
    def act(service: Scripted) -> None:
        terminate()
        service.drained.set()

    service = Scripted(tmp_path, act)
    assert serve(service, tmp_path) == 0
    assert [step for step in service.life if step != "ready"] == ["start", "drain", "stop"]
    assert "ready" in service.life
    assert list(tmp_path.iterdir()) == []


def test_a_person_who_asks_again_cuts_the_drain_short(tmp_path: Path) -> None:
    class Interrupted(Scripted):
        async def drain(self) -> None:
            interrupt()
            await super().drain()

    service = Interrupted(tmp_path, lambda _: interrupt())
    assert serve(service, tmp_path) == 0
    assert service.life[-2:] == ["drain", "stop"]


def test_a_process_that_is_told_twice_of_its_supervisors_end_drains_on(tmp_path: Path) -> None:
    class Told(Scripted):
        async def drain(self) -> None:
            after = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, after.set)
            terminate()
            os.kill(os.getpid(), signal.SIGUSR2)
            await after.wait()
            self.drained.set()
            await super().drain()
            self.life.append("drained")

    service = Told(tmp_path, lambda _: terminate())
    assert serve(service, tmp_path) == 0
    assert service.life[-3:] == ["drain", "drained", "stop"]


def test_a_crashing_callback_is_logged_and_ends_the_process_with_status_1(tmp_path: Path, caplog) -> None:
    def crash() -> None:
        raise ValueError("impossible event")

    service = Scripted(tmp_path, lambda _: asyncio.get_running_loop().call_soon(crash))
    assert serve(service, tmp_path) == 1
    assert service.life[-1] == "stop"
    assert "impossible event" in caplog.text


def test_a_service_that_cannot_be_closed_ends_all_the_same(
    tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stuck(Scripted):
        async def stop(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(runtime, "STOP_S", 0.01)
    service = Stuck(tmp_path, lambda _: asyncio.get_running_loop().call_soon(lambda: 1 // 0))
    assert serve(service, tmp_path) == 1
    assert "it cannot be closed within 0.01 s" in caplog.text


def test_a_crash_while_asked_for_readiness_ends_the_process_too(tmp_path: Path, caplog) -> None:
    def crash(service: Scripted) -> None:
        raise ValueError("no answer")

    assert serve(Scripted(tmp_path, crash), tmp_path) == 1
    assert "no answer" in caplog.text


def test_a_service_that_cannot_start_says_why_in_one_line(tmp_path: Path, caplog) -> None:
    class Broken(Scripted):
        async def start(self) -> None:
            raise StartError("policy.yaml: cannot be read")

    service = Broken(tmp_path, lambda _: None)
    assert serve(service, tmp_path) == 1
    assert caplog.messages == ["policy.yaml: cannot be read"]
    assert service.life == ["stop"]


@pytest.mark.parametrize(("content", "sentence"), [(None, "cannot be read"), (b"short", "has 5 bytes, at least 16")])
def test_a_missing_or_short_secret_is_named(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    deployment = Deployment(data=str(tmp_path)).resolved()
    if content is not None:
        Path(deployment.streams.secret_file).write_bytes(content)
    with pytest.raises(StartError, match=sentence):
        read_secret(deployment)


def test_a_secret_that_others_can_read_is_refused_with_what_mends_it(tmp_path: Path) -> None:
    deployment = Deployment(data=str(tmp_path)).resolved()
    secret = Path(deployment.streams.secret_file)
    secret.write_bytes(b"s" * 32)
    assert read_secret(deployment) == b"s" * 32
    secret.chmod(0o644)
    with pytest.raises(StartError, match=r"mode 0644\); mend it with `chmod 600 .*streams.secret`"):
        read_secret(deployment)


def test_a_supervised_process_ends_when_its_supervisor_is_killed() -> None:
    child = (
        "import signal; from services.runtime import die_with_parent; die_with_parent();"
        "print('up', flush=True); signal.pause()"
    )
    parent = f"import subprocess, sys, os; subprocess.Popen([sys.executable, '-c', {child!r}]); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", parent], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()
        # The child holds the other end of the pipe: its end is the end of the file.
        assert process.stdout.read() == b""


def test_a_run_folder_that_cannot_be_made_is_refused_with_its_name(tmp_path: Path) -> None:
    blocked = tmp_path / "run"
    blocked.write_bytes(b"")
    with pytest.raises(StartError, match=f"{blocked}: the folder of the running processes cannot be used"):
        ReadyFile(blocked, "gateway")


def test_a_ready_file_that_cannot_be_written_is_said_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ready = ReadyFile(tmp_path / "run", "gateway")
    ready.path.with_suffix(".new").mkdir()  # in its way
    for _ in range(3):
        ready.update("")
    assert not ready.path.exists()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        f"{ready.path} cannot be written: Is a directory; it is tried again"
    ]
    ready.path.with_suffix(".new").rmdir()
    ready.update("")
    assert ready.path.read_text().split() == [str(os.getpid())]
