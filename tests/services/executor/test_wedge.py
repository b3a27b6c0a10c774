from policies.events import StepLimits
from services.executor.wedge import Wedge

LIMITS = StepLimits(at_least_s=5.0, times=20.0, first_s=600.0)


class Stream:
    lost_s: float | None = None


def computing(took_s: float = 0.01) -> tuple[Wedge, Stream]:
    """A step ended at 100 s, another one runs since."""
    wedge, stream = Wedge(LIMITS), Stream()
    wedge.stream = stream
    wedge.step_begins(99.0)
    wedge.step_begins(99.5)
    wedge.step_ended(100.0, took_s)
    return wedge, stream


def test_a_step_may_take_as_long_as_the_scheduler_waits_for_it() -> None:
    wedge, _ = computing()
    assert wedge.found(1000.0) == ""


def test_once_the_scheduler_has_gone_a_step_has_as_long_as_it_was_given_before() -> None:
    wedge, stream = computing()
    stream.lost_s = 106.0
    assert wedge.found(110.9) == ""
    assert wedge.found(111.1) == "the scheduler has gone, and a step that began 11 s ago has not ended"


def test_an_executor_of_long_steps_is_given_more_time_and_the_first_step_most() -> None:
    wedge, stream = computing(took_s=2.0)
    stream.lost_s = 106.0
    assert wedge.found(145.9) == ""
    assert wedge.found(146.1)
    first = Wedge(LIMITS)
    first.stream = stream
    first.step_begins(100.0)
    assert first.found(705.0) == ""
    assert first.found(707.0)


def test_an_executor_without_a_step_or_with_a_new_scheduler_goes_on() -> None:
    wedge, stream = computing()
    stream.lost_s = 106.0
    wedge.step_ended(107.0, 0.01)
    assert wedge.found(1000.0) == ""
    wedge, stream = computing()
    stream.lost_s = 106.0
    wedge.stream = Stream()
    assert wedge.found(1000.0) == ""
