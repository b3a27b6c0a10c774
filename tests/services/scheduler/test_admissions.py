"""What the scheduler tells an admission process that comes back: all that it holds, and every end it has not kept."""

import numpy as np
import pytest

from engine.interface import Sampling
from policies.events import HeldAtScheduler
from services.scheduler import admissions as admissions_module
from services.scheduler.admissions import Admissions
from services.scheduler.sequences import Sequences
from services.transport import Identity
from services.troubles import Troubles
from services.wire import Capacity, Dispatch, Holds, Message, RequestEnded, Submit, Usage

CAPACITY = Capacity(1, 1000, 1000, counts_ends=True)


class Stream:
    """An end that keeps what is sent to it."""

    def __init__(self, instance: str = "0") -> None:
        self.peer = Identity("admission", instance)
        self.sent: list[Message] = []

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def take(self, kind: type) -> list:
        found = [message for message in self.sent if isinstance(message, kind)]
        self.sent = [message for message in self.sent if not isinstance(message, kind)]
        return found


class Scheduler:
    def __init__(self) -> None:
        self.sequences = Sequences()
        self.troubles = Troubles()
        self.admissions = Admissions(self.sequences, self.troubles)

    def connect(self, instance: str = "0", kept: int = 0) -> Stream:
        stream = Stream(instance)
        self.admissions.opened(stream, CAPACITY)
        self.admissions.kept(stream, kept, CAPACITY)
        return stream

    def dispatch(self, stream: Stream, request: int, num_choices: int = 1, pooling: str = "") -> None:
        prompt = np.arange(5, dtype=np.int32).tobytes()
        submit = Submit(
            request, "acme", "paid", prompt, 16, [Sampling()] * num_choices, pooling=pooling, weight=2.0, key="k"
        )
        dispatch = Dispatch(submit, "paid", 0.0, 7, 0, 0)
        self.sequences.add(dispatch, 0)
        self.admissions.dispatched(stream, dispatch)

    def produce(self, *sequences: int) -> None:
        for sequence in sequences:
            self.sequences.by_id[sequence].output.append(1)
        self.admissions.produced(np.array(sequences, np.int64), [])

    def end(self, request: int, output_tokens: int) -> None:
        self.admissions.ended(RequestEnded(request, "finished", output_tokens))
        self.sequences.remove(request)


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


def held(request: int, output_tokens: int, **changes) -> HeldAtScheduler:
    return HeldAtScheduler(
        **{
            "request": request,
            "tenant": "acme",
            "project": "default",
            "key": "k",
            "slo_class": "paid",
            "weight": 2.0,
            "prompt_tokens": 5,
            "max_output_tokens": 16,
            "num_choices": 1,
            "output_tokens": output_tokens,
            "tier": "paid",
        }
        | changes
    )


def test_whoever_connects_is_told_what_is_held_then_the_ends_then_from_when_it_may_release(scheduler) -> None:
    before = scheduler.connect()
    for request in (1, 2, 3):
        scheduler.dispatch(before, request)
        scheduler.produce(request)
    scheduler.end(2, 1)
    scheduler.admissions.closed(before)
    scheduler.produce(1, 3)
    scheduler.end(3, 2)
    after = scheduler.connect(kept=1)
    assert [type(message) for message in after.sent] == [Capacity, Holds, RequestEnded, Capacity]
    assert after.take(Holds) == [Holds([held(1, 2), held(3, 2)])]
    assert after.take(RequestEnded) == [RequestEnded(3, "finished", 2, number=2)]


def test_an_end_is_told_again_until_it_is_acknowledged(scheduler) -> None:
    stream = scheduler.connect()
    scheduler.dispatch(stream, 1)
    scheduler.end(1, 0)
    assert stream.take(RequestEnded) == [RequestEnded(1, "finished", 0, number=1)]
    again = scheduler.connect()
    assert [ended.number for ended in again.take(RequestEnded)] == [1]
    scheduler.admissions.kept(again, 1, CAPACITY)
    once_more = scheduler.connect()
    assert once_more.take(RequestEnded) == []
    assert once_more.take(Holds) == [Holds([])]


def test_acknowledging_later_does_not_ask_again(scheduler) -> None:
    stream = scheduler.connect()
    stream.sent.clear()
    scheduler.admissions.kept(stream, 0, CAPACITY)
    assert stream.sent == []


def test_choices_count_together_and_an_embedding_has_no_output(scheduler) -> None:
    stream = scheduler.connect()
    scheduler.dispatch(stream, 10, num_choices=2)
    scheduler.dispatch(stream, 20, pooling="mean")
    scheduler.produce(10, 11, 11, 20)
    (holds,) = scheduler.connect().take(Holds)
    assert holds.requests == [held(10, 3, num_choices=2), held(20, 0, max_output_tokens=0)]


def test_cached_tokens_are_told_once_the_request_has_begun(scheduler) -> None:
    stream = scheduler.connect()
    scheduler.dispatch(stream, 1)
    scheduler.sequences.start(1, 4)
    (holds,) = scheduler.connect().take(Holds)
    assert holds.requests == [held(1, 0)]
    scheduler.produce(1)
    (holds,) = scheduler.connect().take(Holds)
    assert holds.requests == [held(1, 1, cached_tokens=4)]


def test_each_admission_process_hears_of_its_own_requests_alone(scheduler) -> None:
    first, second = scheduler.connect("0"), scheduler.connect("1")
    scheduler.dispatch(first, 10, num_choices=2)
    scheduler.dispatch(second, 20)
    for sequence in (10, 11, 20):
        scheduler.sequences.by_id[sequence].output.append(1)
    scheduler.admissions.produced(np.array([10, 20, 11], np.int64), [(20, 3)])
    assert first.take(Usage) == [Usage(np.array([10, 11], np.int64).tobytes())]
    assert second.take(Usage) == [Usage(np.array([20], np.int64).tobytes(), [(20, 3)])]
    scheduler.end(20, 1)
    assert first.take(RequestEnded) == []
    assert [ended.number for ended in second.take(RequestEnded)] == [1]
    scheduler.admissions.closed(first)
    scheduler.end(10, 2)
    assert [ended.request for ended in scheduler.connect("0").take(RequestEnded)] == [10]


def test_of_a_process_that_never_comes_back_only_so_many_ends_are_kept(scheduler, monkeypatch, caplog) -> None:
    monkeypatch.setattr(admissions_module, "MOST_ENDS", 3)
    stream = scheduler.connect()
    for request in range(1, 6):
        scheduler.dispatch(stream, request)
        scheduler.end(request, 0)
    assert caplog.text.count("are forgotten") == 1
    (trouble,) = scheduler.troubles.sentences
    assert "the last 3 ends of requests: those up to number 2 are forgotten" in trouble
    again = scheduler.connect()
    assert [ended.number for ended in again.take(RequestEnded)] == [3, 4, 5]
    assert scheduler.troubles.sentences
    scheduler.admissions.kept(again, 3, CAPACITY)
    assert scheduler.troubles.sentences == []


def again(scheduler: Scheduler, stream: Stream, request: int, attempt: int, output: bytes = b"") -> None:
    """It is sent again after the stream to its gateway broke."""
    prompt = np.arange(5, dtype=np.int32).tobytes()
    submit = Submit(request, "acme", "paid", prompt, 16, [Sampling()], weight=2.0, key="k", attempt=attempt)
    submit.outputs = [output]
    if request in scheduler.sequences:
        scheduler.admissions.dispatched_again(stream, submit)
        return
    dispatch = Dispatch(submit, "paid", 0.0, 7, 0, 0)
    scheduler.sequences.add(dispatch, 0)
    scheduler.admissions.dispatched(stream, dispatch)


def test_an_end_says_of_which_attempt_it_is_and_counts_what_was_made_before(scheduler) -> None:
    stream = scheduler.connect()
    scheduler.dispatch(stream, 1)
    scheduler.produce(1)
    scheduler.end(1, 1)
    again(scheduler, stream, 1, 1, np.arange(3, dtype=np.int32).tobytes())
    # What the recomputation finds in the prefix cache was told of before.
    scheduler.sequences.start(1, 4)
    scheduler.produce(1)
    (holds,) = scheduler.connect().take(Holds)
    assert holds.requests == [held(1, 4, attempt=1), held(1, 1)]
    scheduler.end(1, 4)
    assert [each.attempt for each in scheduler.connect().take(RequestEnded)] == [0, 1]


def test_a_request_that_is_here_is_not_made_twice_and_its_end_answers_the_newest_attempt(scheduler) -> None:
    stream = scheduler.connect()
    scheduler.dispatch(stream, 1)
    scheduler.produce(1)
    again(scheduler, stream, 1, 2)
    assert list(scheduler.sequences.by_id[1].output) == [1]
    scheduler.end(1, 1)
    assert stream.take(RequestEnded) == [RequestEnded(1, "finished", 1, number=1, attempt=2)]


def test_a_second_admission_process_that_releases_the_same_request_is_to_forget_it(scheduler) -> None:
    first, second = scheduler.connect("0"), scheduler.connect("1")
    scheduler.dispatch(first, 1)
    again(scheduler, second, 1, 0)
    (ended,) = second.take(RequestEnded)
    assert (ended.request, ended.outcome, ended.output_tokens, ended.number) == (1, "refused", 0, 0)
    scheduler.end(1, 3)
    assert [each.output_tokens for each in first.take(RequestEnded)] == [3]
    assert second.take(RequestEnded) == []
