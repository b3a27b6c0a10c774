import os
import time
from pathlib import Path

from services.pulse import Listener, Pulse, Work, age_s, work_of


def test_a_process_that_beats_is_heard_and_one_that_does_not_is_silent_for_longer_and_longer(tmp_path: Path) -> None:
    heard = Listener()
    pulse = Pulse(tmp_path / "x.ready", heard.given)
    heard.look(0.5)
    heard.look(0.5)
    assert (heard.num_beats, heard.silent_s) == (0, 1.0)
    pulse.beat()
    pulse.beat()
    heard.look(0.5)
    assert (heard.num_beats, heard.silent_s) == (2, 0.0)
    os.close(heard.given)
    heard.look(0.75)
    assert heard.silent_s == 0.75
    heard.close()
    heard.close()


def test_a_machine_that_slept_for_an_hour_is_no_silence_of_an_hour(tmp_path: Path) -> None:
    heard = Listener()
    heard.look(3600.0)
    assert heard.silent_s == 1.0
    heard.close()
    os.close(heard.given)


def test_a_process_that_gets_no_processor_is_not_silent_and_one_that_spins_is(tmp_path: Path) -> None:
    heard = Listener()
    heard.look(1.0, Work(is_runnable=True, cpu_s=10.0))
    for _ in range(100):
        heard.look(1.0, Work(is_runnable=True, cpu_s=10.0))
    starved_s = heard.silent_s
    for second in range(1, 6):
        heard.look(1.0, Work(is_runnable=True, cpu_s=10.0 + second))
    assert (starved_s, heard.silent_s) == (1.0, 6.0)
    # One that waits for something else, or was stopped, has no claim to a processor.
    heard.look(1.0, Work(is_runnable=False, cpu_s=15.0))
    assert heard.silent_s == 7.0
    heard.close()
    os.close(heard.given)


def test_the_kernel_tells_what_a_process_does() -> None:
    work = work_of(os.getpid())
    assert work is not None
    assert work.is_runnable
    assert work.cpu_s > 0
    assert work_of(2**22 + 1) is None


def test_nobody_who_listens_holds_up_whoever_beats(tmp_path: Path) -> None:
    heard = Listener()
    orphaned = []
    pulse = Pulse(tmp_path / "x.ready", heard.given, orphaned=lambda: orphaned.append("once"))
    for _ in range(70_000):  # more than a pipe holds
        pulse.beat()
    assert orphaned == []
    # Its supervisor has ended, and without it nobody would start what ends.
    heard.close()
    pulse.beat()
    pulse.beat()
    assert orphaned == ["once"]
    os.close(heard.given)


def test_the_age_of_the_ready_file_is_that_of_the_last_sign_of_life(tmp_path: Path) -> None:
    ready = tmp_path / "x.ready"
    assert age_s(ready) is None
    ready.write_text("1\n")
    os.utime(ready, (0, time.time() - 50))
    silent_s = age_s(ready)
    assert silent_s is not None
    assert silent_s >= 49
    Pulse(ready).beat()
    beaten_s = age_s(ready)
    assert beaten_s is not None
    assert beaten_s < 49
