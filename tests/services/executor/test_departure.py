import os
import signal
from collections.abc import Iterator

import pytest

from services.executor.departure import Departure, Stopped


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    heeded = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in heeded}
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, what in before.items():
        signal.signal(number, what)


def asked(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_an_executor_that_holds_nothing_leaves_at_once(number: signal.Signals) -> None:
    Departure(drain_s=60.0).heed_signals()
    with pytest.raises(Stopped):
        asked(number)


def test_one_that_is_handed_over_ends_its_steps_and_begins_no_other() -> None:
    departure = Departure(drain_s=60.0)
    departure.heed_signals()
    departure.work_left(num_steps=0, num_sequences=3)
    departure.step_begins()
    asked(signal.SIGUSR1)
    assert departure.is_due
    with pytest.raises(Stopped):
        departure.work_left(num_steps=0, num_sequences=3)


def test_one_that_drains_goes_on_until_it_holds_no_sequence() -> None:
    departure = Departure(drain_s=60.0)
    departure.heed_signals()
    departure.work_left(num_steps=0, num_sequences=3)
    asked(signal.SIGTERM)
    departure.step_begins()
    departure.work_left(num_steps=0, num_sequences=1)
    assert not departure.is_due
    with pytest.raises(Stopped):
        departure.work_left(num_steps=0, num_sequences=0)


def test_a_second_sigterm_takes_nothing_from_the_readers_time() -> None:
    departure = Departure(drain_s=60.0)
    departure.heed_signals()
    departure.work_left(num_steps=0, num_sequences=3)
    asked(signal.SIGTERM)
    left_s = signal.setitimer(signal.ITIMER_REAL, 30.0)[0]
    asked(signal.SIGTERM)
    assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 30.0 < left_s
    assert not departure.is_due


def test_a_person_who_asks_again_and_the_end_of_the_readers_time_cut_the_drain_short() -> None:
    for cut_short in (signal.SIGINT, signal.SIGALRM):
        departure = Departure(drain_s=60.0)
        departure.heed_signals()
        departure.work_left(num_steps=0, num_sequences=3)
        asked(signal.SIGTERM)
        with pytest.raises(Stopped):
            asked(cut_short)
