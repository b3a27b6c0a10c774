"""What `fairlead up` does when its services cannot start, end, or are started again; that it serves is a story."""

import contextlib
import errno
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.interface import EngineSettings
from services import supervisor
from services.children import Place
from services.control import SOCKET, Asked, Control, Said
from services.settings import Deployment, HttpSettings, SupervisionSettings
from services.setup import Prepared
from services.supervisor import Given, Supervisor


def test_modules_in_the_callers_folder_are_not_taken_for_the_services_own(tmp_path: Path) -> None:
    (tmp_path / "http.py").write_text("raise SystemExit('not the standard library')")
    deployment = tmp_path / "deployment.yaml"
    deployment.write_text("version: 1\nengine: {kind: paced}\nstreams: {scheduler: unix:///proc/none/s.sock}\n")
    ended = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "services.cli",
            "up",
            "--deployment",
            deployment,
            "--data-dir",
            "data",
            "--port=0",
        ],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    # The one service that cannot start says why, in its own words.
    assert "scheduler ended while starting" in ended.stderr
    assert "/proc/none" in ended.stderr


class Beats:
    def __init__(self) -> None:
        self.num_beats = 0
        self.silent_s = 0.0


class Played:
    """A process that does what the test says; `immortal`: not even a kill ends it."""

    pid = 4711
    log = Path("gateway.log")
    last_words = "what its log ends with"
    immortal = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.pulse = Beats()
        self.leaving_s: float | None = None
        self.status: int | None = None
        self.is_ready = False
        self.is_killed = False

    def look(self, elapsed_s: float) -> None:
        del elapsed_s

    def works(self) -> None:
        self.pulse.num_beats, self.is_ready = 100, True

    def leave(self, now: float, number: int) -> None:
        del number
        self.leaving_s = now

    def kill(self, reason: str) -> None:
        del reason
        self.is_killed = True
        if not self.immortal:
            self.status = -9

    def bury(self) -> None:
        self.is_ready = False


class Clock:
    """The supervisor's; who sleeps moves it, and what is to happen meanwhile does."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.meanwhile: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, duration_s: float) -> None:
        self.now += duration_s
        self.meanwhile()


class Watched:
    """A supervisor over played processes."""

    def __init__(self, folder: Path, **http: Any) -> None:
        self.begun: list[Played] = []
        self.deployment = Deployment(
            data=str(folder / "data"),
            http=HttpSettings(port=8000, **http),
            supervision=SupervisionSettings(crashes=2),
            engine=EngineSettings(kind="paced"),
        ).resolved()
        self.read = self.deployment
        Path(self.deployment.run).mkdir(parents=True)
        self.listening = socket.socket()
        self.supervisor = Supervisor(self.deployment, Prepared("", "", ""), Given(self.listening, 0, lambda: self.read))
        self.places = self.supervisor._places
        self.now = 0.0

    def begin(self, place: Place) -> Any:
        self.begun.append(Played(place.name))
        return self.begun[-1]

    def attend(self, name: str, elapsed_s: float = 1.0) -> Any:
        self.now += elapsed_s
        self.supervisor._attend(self.places[name], self.now, elapsed_s)
        return self.places[name].child

    def serve(self) -> None:
        for name in self.places:
            self.attend(name).works()
        self.supervisor._has_served = True

    def ask(self, *services: str) -> "Iterator[Said]":
        """What `fairlead restart` hears while everything goes on."""
        control = Control(self.deployment.run)
        with socket.socket(socket.AF_UNIX) as asking, contextlib.closing(control):
            asking.connect(str(Path(self.deployment.run) / SOCKET))
            asking.sendall(msgspec.json.encode(Asked(list(services))) + b"\n")
            asking.setblocking(False)
            heard = b""
            for _ in range(100):
                self.supervisor._restarts.answer(control, self.supervisor._deployment, self.now, leave_s=40)
                for name in self.places:
                    self.attend(name, 0.1)
                with contextlib.suppress(BlockingIOError):
                    heard += asking.recv(65536)
                *lines, heard = heard.split(b"\n")
                for line in lines:
                    yield msgspec.json.decode(line, type=Said)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    made = Watched(tmp_path)
    monkeypatch.setattr(Supervisor, "_begin", lambda _, place: made.begin(place))
    made.supervisor._restarts._begin = made.begin
    yield made
    made.listening.close()


def test_one_that_loads_for_long_and_then_ends_at_once_is_given_up_too(watched: Watched) -> None:
    watched.serve()
    for _ in range(3):
        watched.places["executor"].child.status = 1  # type: ignore[union-attr]
        watched.attend("executor")
        watched.now += 300.0
        if watched.attend("executor") is None:
            break
        for _ in range(300):
            watched.attend("executor")
        watched.places["executor"].child.works()  # type: ignore[union-attr]
        watched.attend("executor")
    assert "executor ended 3 times within 60 s of work and is not started again" in watched.places["executor"].given_up


def test_while_the_machine_has_no_process_left_nobody_is_given_up(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left(_: Supervisor, place: Place) -> Any:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    watched.serve()
    with monkeypatch.context() as full:
        full.setattr(Supervisor, "_begin", none_left)
        watched.places["executor"].child.status = -9  # type: ignore[union-attr]
        for _ in range(100):
            watched.attend("executor")
    assert [message for message in caplog.messages if "cannot be started" in message] == [
        "executor cannot be started: [Errno 11] Resource temporarily unavailable; it is tried again each second"
    ]
    assert watched.attend("executor") is watched.begun[-1]
    assert (watched.places["executor"].given_up, watched.places["executor"].hindered) == ("", "")


def test_what_cannot_be_started_in_the_beginning_ends_the_start(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: Supervisor, place: Place) -> Any:
        raise OSError(errno.ENOTDIR, "Not a directory", "logs")

    monkeypatch.setattr(Supervisor, "_begin", none_left)
    watched.attend("executor")
    assert watched.supervisor._failed == "executor cannot be started: [Errno 20] Not a directory: 'logs'"


def test_one_that_works_for_long_between_its_ends_is_started_again_for_ever(watched: Watched) -> None:
    watched.serve()
    for _ in range(10):
        for _ in range(31):
            watched.attend("executor")
        watched.places["executor"].child.status = 1  # type: ignore[union-attr]
        watched.attend("executor")
        watched.attend("executor", 10.0).works()
    assert not watched.places["executor"].given_up


def test_what_not_even_a_kill_ends_is_said_once_and_nobody_waits_for_it_for_ever(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watched.serve()
    child = watched.places["scheduler"].child
    assert isinstance(child, Played)
    child.immortal, child.pulse.silent_s = True, 60.0
    for _ in range(10):
        watched.attend("scheduler", 0.1)
    assert [record.getMessage() for record in caplog.records] == [
        "scheduler has given no sign of life for 5 s: it is stopped or stuck; killing it"
    ]
    clock = Clock()

    def others_end() -> None:
        for each in watched.begun:
            if each.leaving_s is not None and each is not child:
                each.status = 0

    clock.meanwhile = others_end
    monkeypatch.setattr(supervisor, "time", clock)
    watched.supervisor._stop_all()
    assert clock.now - 1000.0 < 60.0
    assert "scheduler (process 4711) was killed and does not end; it is left behind" in caplog.text


def test_who_works_for_readers_that_finish_is_started_again_if_it_ends(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.serve()
    clock, gateway = Clock(), watched.places["gateway"].child
    assert isinstance(gateway, Played)

    def meanwhile() -> None:
        begun = {each.name: each for each in watched.begun}
        if clock.now < 1001.0:
            begun["executor"].status = -9
        elif clock.now > 1003.0:
            for each in watched.begun:
                each.status = 0 if each.leaving_s is not None else each.status

    clock.meanwhile = meanwhile
    monkeypatch.setattr(supervisor, "time", clock)
    watched.supervisor._stop_all()
    after = [each for each in watched.begun[4:] if each.name == "executor"]
    assert after
    assert all(each.status is not None for each in watched.begun)


def test_whoever_is_tried_again_at_once_is_not_said_to_be_done_without(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.serve()
    watched.supervisor._judge_at_s = 0.0
    watched.supervisor._judge(1.0)
    assert caplog.messages == []
    assert watched.supervisor._failed == ""


def test_a_gateway_that_only_starts_is_waited_for_before_all_is_given_up(watched: Watched) -> None:
    watched.serve()
    watched.places["admission"].given_up = "admission ended 3 times"
    watched.places["gateway"].child = None
    watched.supervisor._judge_at_s = 0.0
    watched.supervisor._judge(1.0)
    assert watched.supervisor._failed == ""
    watched.attend("gateway").pulse.num_beats = 10
    watched.supervisor._judge(10.0)
    assert watched.supervisor._failed.startswith("nothing can be served without admission: admission ended 3 times")


def test_a_restart_takes_the_settings_that_the_file_has_now(watched: Watched) -> None:
    watched.serve()
    http = msgspec.structs.replace(watched.deployment.http, drain_s=5.0)
    watched.read = msgspec.structs.replace(watched.deployment, http=http)
    heard = []
    for said in watched.ask("executor"):
        heard.append(said)
        child = watched.places["executor"].child
        if isinstance(child, Played) and child.leaving_s is not None:
            child.status = 0
        elif isinstance(child, Played):
            child.works()
    assert [said.line for said in heard if "waited" not in said.line and not said.awaited] == [
        "new settings: http.drain_s: 30 → 5",
        "restarting executor (1 of 1)",
        "restarted",
    ]
    started = msgspec.json.decode((Path(watched.deployment.run) / "deployment.json").read_bytes(), type=Deployment)
    assert started.http.drain_s == 5.0
    assert watched.supervisor._leave_s == 15.0


def test_what_cannot_change_while_services_run_is_refused_before_anything_is_stopped(watched: Watched) -> None:
    watched.serve()
    http = msgspec.structs.replace(watched.deployment.http, port=9000, drain_s=5.0)
    watched.read = msgspec.structs.replace(watched.deployment, http=http)
    (said,) = watched.ask()
    assert said.state == "failed"
    assert said.line.startswith("http.port: 8000 → 9000: this cannot change while services run; nothing was restarted.")
    assert all(child.leaving_s is None for child in watched.begun)
    assert watched.supervisor._deployment is watched.deployment


def test_settings_with_which_a_service_does_not_start_are_taken_back(watched: Watched) -> None:
    watched.serve()
    engine = msgspec.structs.replace(watched.deployment.engine, kv_pool_tokens=1)
    watched.read = msgspec.structs.replace(watched.deployment, engine=engine)
    heard = []
    for said in watched.ask("executor"):
        heard.append(said)
        child = watched.places["executor"].child
        if isinstance(child, Played) and (child.leaving_s is not None or child in watched.begun[4:5]):
            child.status = 0 if child.leaving_s is not None else 1
    assert heard[-1].state == "failed"
    assert heard[-1].line == (
        "executor ended while starting: what its log ends with; the settings of before are in force again, for "
        "executor at once, for others when they start next"
    )
    assert watched.supervisor._deployment == watched.deployment
    assert watched.places["executor"].given_up == ""
    assert isinstance(watched.places["executor"].child, Played)
    assert watched.places["executor"].child.status is None


def test_one_that_ends_again_and_again_is_not_said_to_be_restarted(watched: Watched) -> None:
    watched.serve()
    heard = []
    for said in watched.ask("executor"):
        heard.append(said)
        for each in watched.begun:
            if each.leaving_s is not None or each in watched.begun[4:]:
                each.status = 1
    assert heard[-1].state == "failed"
    assert heard[-1].line.startswith("executor ended 3 times within 60 s of work and is not started again")


def test_a_gateway_for_whose_successor_there_is_no_process_goes_on(watched: Watched) -> None:
    watched.serve()

    def none_left(place: Place) -> Any:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    watched.supervisor._restarts._begin = none_left
    *_, last = watched.ask("gateway")
    assert last.state == "failed"
    assert last.line == ("the new gateway cannot be started: Resource temporarily unavailable; the old one goes on")
    assert watched.places["gateway"].child.leaving_s is None  # type: ignore[union-attr]


def test_whoever_asked_for_a_restart_hears_what_is_waited_for_and_that_all_is_stopped(watched: Watched) -> None:
    watched.serve()
    heard = []
    for said in watched.ask("scheduler"):
        heard.append(said)
        watched.now += 1.0
        if len(heard) == 3:
            watched.supervisor._restarts.close()
    assert heard[1].awaited == "waiting for the end of scheduler, 0 s"
    assert heard[-1].state == "failed"
    assert "is being stopped" in heard[-1].line


def test_a_terminal_that_goes_away_drains_and_is_nobody_who_asks_twice(watched: Watched) -> None:
    watched.serve()
    watched.supervisor._on_signal(signal.SIGINT, None)
    watched.supervisor._on_hangup(signal.SIGHUP, None)
    assert watched.supervisor._stop.is_set()
    assert not any(child.is_killed for child in watched.begun)
    watched.supervisor._on_signal(signal.SIGINT, None)
    assert all(child.is_killed for child in watched.begun)
