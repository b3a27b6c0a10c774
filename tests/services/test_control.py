import os
import resource
import socket
import stat
from pathlib import Path

import pytest

from services.control import SOCKET, Asked, Control, ControlError, ask


def test_a_question_is_read_piece_by_piece_and_answered_by_lines(tmp_path: Path) -> None:
    control = Control(str(tmp_path))
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(tmp_path / SOCKET))
        asking.sendall(b'{"restart"')
        assert list(control.questions()) == []
        asking.sendall(b': ["gateway"]}\n')
        ((caller, asked),) = control.questions()
        assert asked == Asked(["gateway"])
        caller.say("a line")
        caller.say("over", "done")
        caller.close()
        assert asking.makefile().read().count("\n") == 2
    control.close()
    assert not (tmp_path / SOCKET).exists()


def test_only_its_user_reaches_the_socket(tmp_path: Path) -> None:
    control = Control(str(tmp_path))
    assert stat.S_IMODE((tmp_path / SOCKET).stat().st_mode) == 0o600
    control.close()


@pytest.mark.parametrize("question", [b"restart\n", b'{"restart": 1}\n', b'{"stop": []}\n', b"x" * 70_000])
def test_a_question_that_means_nothing_is_refused_and_others_are_still_heard(tmp_path: Path, question: bytes) -> None:
    control = Control(str(tmp_path))
    with socket.socket(socket.AF_UNIX) as strange, socket.socket(socket.AF_UNIX) as plain:
        strange.connect(str(tmp_path / SOCKET))
        strange.sendall(question)
        plain.connect(str(tmp_path / SOCKET))
        plain.sendall(b'{"restart": []}\n')
        heard = []
        for _ in range(len(question) // 4096 + 1):
            heard += control.questions()
        ((caller, asked),) = heard
        assert asked == Asked([])
        caller.close()
        # Of a question without an end nothing is kept, and its rest meets a closed connection.
        assert len(question) > 1000 or b"no question" in strange.recv(1000)
    control.close()


def test_without_a_supervisor_the_caller_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no `fairlead up` runs here"):
        list(ask(str(tmp_path), Asked([])))


def test_a_supervisor_without_a_descriptor_left_hears_who_asks_later(tmp_path: Path) -> None:
    control = Control(str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(tmp_path / SOCKET))
        asking.sendall(b'{"restart": []}\n')
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            assert list(control.questions()) == []
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        ((caller, asked),) = control.questions()
        assert asked == Asked([])
        caller.close()
    control.close()


def test_a_second_supervisor_does_not_take_the_run_folder_of_the_first(tmp_path: Path) -> None:
    control = Control(str(tmp_path))
    with pytest.raises(ControlError, match="another `fairlead up` runs in "):
        Control(str(tmp_path))
    assert (tmp_path / SOCKET).exists()
    control._listening.close()
    Control(str(tmp_path)).close()  # nobody listens at what one that was killed has left


def test_a_supervisor_that_stands_still_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    control = Control(str(tmp_path))
    with pytest.raises(ControlError, match=r"said nothing for 0\.01 s: it is stopped or stuck"):
        list(ask(str(tmp_path), Asked([]), silence_s=0.01))
    control.close()
