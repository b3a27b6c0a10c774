"""How a command asks the running supervisor for something: a socket in the run folder, for this user alone.

One question a connection, answered line by line; both ends are here. Knows no processes.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

SOCKET = "supervisor.sock"
LONGEST_QUESTION_BYTES = 64 * 2**10
SILENCE_S = 10.0
"""Whoever is asked says something each second."""
State = Literal["going", "done", "failed"]


class ControlError(Exception):
    """Nobody answers; the sentence says who should."""


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked: to start these again, one after the other; none named: all."""

    restart: list[str]


class Said(msgspec.Struct, frozen=True):
    """One line of the answer; `done` and `failed` are the last."""

    line: str
    state: State = "going"
    awaited: str = ""
    """In place of a line, once a second: what is being waited for just now."""


class Caller:
    """Who asked. Whoever does not read the answer misses it: nothing waits for it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""
        self.asked: Asked | None = None

    def read(self) -> bool:
        """Take in what came; False: it has gone, or asks what cannot be understood."""
        try:
            data = self._connection.recv(4096)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._received += data
        if not data or len(self._received) > LONGEST_QUESTION_BYTES:
            return False
        if b"\n" in self._received:
            try:
                self.asked = msgspec.json.decode(self._received, type=Asked)
            except msgspec.MsgspecError as error:
                self.say(f"this is no question that the supervisor knows: {error}", "failed")
                return False
        return True

    def say(self, line: str, state: State = "going") -> None:
        """Answer with a line."""
        self._send(Said(line, state))

    def wait(self, awaited: str) -> None:
        """There is nothing to answer yet; this is being waited for."""
        self._send(Said("", awaited=awaited))

    def _send(self, said: Said) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(msgspec.json.encode(said) + b"\n")

    def close(self) -> None:
        """The answer is complete."""
        self._connection.close()


class Control:
    """The supervisor's end; never waits.

    Raises:
        ControlError: another one listens in this folder.
        OSError: the folder cannot be used.
    """

    def __init__(self, run_folder: str) -> None:
        self._path = Path(run_folder) / SOCKET
        if _answers(self._path):
            # Of another data folder: of this one's only one runs.
            raise ControlError(
                f"another `fairlead up` runs in {run_folder}; name another folder with `run:` in the deployment file"
            )
        self._path.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX)
        previous = os.umask(0o177)
        try:
            self._listening.bind(str(self._path))
        finally:
            os.umask(previous)
        self._listening.listen()
        self._listening.setblocking(False)
        self._reading: list[Caller] = []

    def questions(self) -> Iterator[tuple[Caller, Asked]]:
        """What has been asked since the last look."""
        # Nobody has come, has gone again meanwhile, or there is no descriptor left: who waits is heard at a later look.
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                connection.setblocking(False)
                self._reading.append(Caller(connection))
        for caller in tuple(self._reading):
            if not caller.read():
                self._reading.remove(caller)
                caller.close()
            elif caller.asked is not None:
                self._reading.remove(caller)
                yield caller, caller.asked

    def close(self) -> None:
        """Nobody is answered any more."""
        self._listening.close()
        for caller in self._reading:
            caller.close()
        self._path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True


def ask(run_folder: str, asked: Asked, silence_s: float = SILENCE_S) -> Iterator[Said]:
    """Ask the supervisor whose run folder this is; its answer, line by line.

    Raises:
        ControlError: there is none, it says nothing for `silence_s`, or ended before its answer did.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(silence_s)
        try:
            connection.connect(str(Path(run_folder) / SOCKET))
            connection.sendall(msgspec.json.encode(asked) + b"\n")
        except OSError as error:
            raise ControlError(f"no `fairlead up` runs here: {Path(run_folder) / SOCKET}: {error.strerror}") from error
        with connection.makefile("rb") as lines:
            try:
                for line in lines:
                    said = msgspec.json.decode(line, type=Said)
                    # One of an earlier version does not say what it waits for: it is silent while a model is loaded.
                    connection.settimeout(silence_s if said.awaited else None)
                    yield said
                    if said.state != "going":
                        return
            except TimeoutError:
                raise ControlError(
                    f"`fairlead up` has said nothing for {silence_s:g} s: it is stopped or stuck"
                ) from None
            except OSError as error:
                raise ControlError(f"`fairlead up` cannot be heard any more: {error.strerror}") from error
    raise ControlError("`fairlead up` ended before it had answered")
