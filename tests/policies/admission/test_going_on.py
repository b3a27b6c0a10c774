"""Requests outlive the scheduler that had them, or their gateway's stream to it: whoever goes on is charged once, for
what its reader has, and whoever does not leaves nothing behind.
"""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from policies.admission.core import AdmissionCore
from policies.commands import CancelReleased, Command, Refuse, Release, Resume, Settle, Strand, WakeAt
from policies.events import (
    Arrived,
    CancelRequested,
    CapacityChanged,
    HeldAtScheduler,
    PolicyApplied,
    RequestFinished,
    SchedulerHolds,
    SchedulerLost,
    Started,
    TokensProduced,
    Woke,
)

POLICY = b"""
version: 1
name: test
classes: [{name: only, ttft_s: 1.0, tbt_s: 0.1}]
classify: [{class: only}]
fairness: {window_tokens: 400}
batching: {stages: [{decode: {}}, {prefill: {from: waiting}}]}
"""
CAPACITY = CapacityChanged(num_executors=1, kv_tokens=1000, max_sequence_tokens=500)
RESUME_S = 30.0
MOST_TOKENS = 90


class Reader:
    """What a gateway knows of a request."""

    def __init__(self, request: int, tenant: str, prompt: int) -> None:
        self.request = request
        self.tenant = tenant
        self.prompt = prompt
        self.got = 0
        self.attempt = 0
        self.is_lost = False
        """Nobody has it, and it is not sent again yet."""

    def arrived(self, **options: Any) -> Arrived:
        return Arrived(self.request, self.tenant, "free", self.prompt, MOST_TOKENS, **options)


class World:
    """Admission's core, what a scheduler has (attempt and output of each request), and the readers."""

    def __init__(self) -> None:
        self.now = 0.0
        self.core = AdmissionCore()
        self.held: dict[int, tuple[int, int]] = {}
        self.readers: dict[int, Reader] = {}
        self.settled: dict[int, Settle] = {}
        self.due: dict[int, int] = {}
        """Output that is to be paid for, where that can be known."""
        self.num_requests = 0
        for event in (Started(0.0), PolicyApplied(1, POLICY), CAPACITY):
            self.tell(event)

    def tell(self, event: Any) -> list[Command]:
        self.now += 0.001
        commands = self.core.handle(event, self.now)
        self.core.check()
        for command in commands:
            match command:
                case Release():
                    self.held[command.request] = (0, 0)
                case Resume():
                    reader = self.readers[command.request]
                    self.held.setdefault(command.request, (reader.attempt, reader.got))
                case CancelReleased():
                    attempt, output = self.held.pop(command.request)
                    self.tell(RequestFinished(command.request, output, "cancelled", attempt))
                case Settle():
                    before = self.settled.get(command.request)
                    # What nothing was made of, and so cost nothing, comes anew when it is sent after it was given up.
                    assert before is None or (before.prompt_tokens, before.output_tokens) == (0, 0)
                    self.settled[command.request] = command
                case Strand():
                    assert command.request in self.due or self.readers[command.request].attempt >= command.attempt
        return commands

    # --- what happens -------------------------------------------------------------------------------------------

    def arrive(self, tenant: str, prompt: int) -> None:
        self.num_requests += 10
        reader = self.readers[self.num_requests] = Reader(self.num_requests, tenant, prompt)
        self.tell(reader.arrived())

    def step(self) -> None:
        self.produce(is_delivered=True, is_heard=True)

    def produce(self, *, is_delivered: bool, is_heard: bool) -> None:
        grows = {request: held for request, held in self.held.items() if held[1] < MOST_TOKENS - 1}
        for request, (attempt, output) in grows.items():
            self.held[request] = (attempt, output + 1)
            if is_delivered:
                self.readers[request].got = output + 1
        if is_heard and grows:
            self.tell(TokensProduced(list(grows)))

    def finish(self, index: int, is_told: bool) -> None:
        """Not told: the scheduler is lost before it says so, and the gateway speaks for it."""
        if not self.held:
            return
        request = list(self.held)[index % len(self.held)]
        attempt, output = self.held.pop(request)
        reader = self.readers.pop(request)
        self.due[request] = reader.got = output
        if not is_told:
            self.lose_scheduler(0, 0)
        self.tell(RequestFinished(request, output, "finished", attempt))

    def leave(self, index: int) -> None:
        if self.readers:
            request = list(self.readers)[index % len(self.readers)]
            self.readers.pop(request)
            self.tell(CancelRequested(request))

    def lose_scheduler(self, num_undelivered: int, num_unheard: int) -> None:
        for _ in range(num_undelivered):
            self.produce(is_delivered=False, is_heard=True)
        for _ in range(num_unheard):
            self.produce(is_delivered=True, is_heard=False)
        for request in self.held:
            self.readers[request].is_lost = True
        self.held.clear()
        self.tell(CapacityChanged(0, 0, 0))
        self.tell(SchedulerLost(RESUME_S))
        self.tell(SchedulerHolds((), RESUME_S))
        self.tell(CAPACITY)

    def lose_gateway_stream(self, num_undelivered: int, is_resent_first: bool) -> None:
        """The scheduler cancels what it has for the gateway, which is back at once."""
        for _ in range(num_undelivered):
            self.produce(is_delivered=False, is_heard=True)
        over = dict(self.held)
        self.held.clear()
        for request in over:
            self.readers[request].is_lost = True
        if is_resent_first:
            self.resend()
        for request, (attempt, output) in over.items():
            self.tell(RequestFinished(request, output, "cancelled", attempt, RESUME_S))

    def lose_scheduler_stream(self) -> None:
        """Admission connects again, and is told what there is."""
        self.tell(CapacityChanged(0, 0, 0))
        there = []
        for request, (attempt, output) in self.held.items():
            reader = self.readers[request]
            there.append(
                HeldAtScheduler(
                    request, reader.tenant, "default", "", "only", 1.0, reader.prompt, MOST_TOKENS, 1, output,
                    attempt=attempt,
                )
            )  # fmt: skip
        self.tell(SchedulerHolds(tuple(there), RESUME_S))
        self.tell(CAPACITY)

    def resend(self) -> None:
        for reader in list(self.readers.values()):
            if reader.is_lost:
                reader.is_lost = False
                reader.attempt += 1
                options = {"resent": True, "attempt": reader.attempt, "made_tokens": reader.got, "waited_s": 1.0}
                refused = [each for each in self.tell(reader.arrived(**options)) if isinstance(each, Refuse)]
                if refused:
                    assert reader.request in self.settled
                    del self.readers[reader.request]

    def wait(self) -> None:
        """Whoever is not sent again for so long is given up."""
        if any(reader.is_lost for reader in self.readers.values()):
            self.now += RESUME_S
            self.tell(Woke())
            for reader in [each for each in self.readers.values() if each.is_lost]:
                # Its gateway has given it up by now, too; one that cost nothing could still come, anew.
                if reader.got or self.settled[reader.request].prompt_tokens:
                    del self.readers[reader.request]

    def finish_all(self) -> None:
        self.resend()
        while self.readers:
            assert self.held, "somebody waits and nobody is computed"
            self.step()
            self.finish(0, is_told=True)


indices = st.integers(0, 9)
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.sampled_from(["acme", "globex"]), st.integers(1, 90)),
        st.tuples(st.just("step")),
        st.tuples(st.just("finish"), indices, st.booleans()),
        st.tuples(st.just("leave"), indices),
        st.tuples(st.just("lose_scheduler"), st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.just("lose_gateway_stream"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("lose_scheduler_stream")),
        st.tuples(st.just("resend")),
        st.tuples(st.just("wait")),
    ),
    max_size=40,
)


@given(happenings)
@example([("arrive", "acme", 9), ("step",), ("lose_scheduler", 2, 0), ("resend",), ("step",)])
@example([("arrive", "acme", 9), ("step",), ("lose_scheduler", 0, 2), ("leave", 0)])
@example([("arrive", "acme", 9), ("step",), ("lose_gateway_stream", 2, True), ("lose_scheduler_stream",)])
@example([("arrive", "acme", 9), ("lose_scheduler", 0, 0), ("wait",)])
@settings(max_examples=60, deadline=None)
def test_whatever_is_lost_a_request_is_settled_once_by_what_its_reader_got(happened: list[Any]) -> None:
    world = World()
    for name, *arguments in happened:
        getattr(world, name)(*arguments)
    world.finish_all()
    assert world.core.ledger.in_flight == {}
    assert world.core.ends.stranded == {}
    assert world.core.window.reserved_tokens == 0
    assert {request: world.settled[request].output_tokens for request in world.due} == world.due


def begun(num_steps: int = 3) -> tuple[World, Reader]:
    world = World()
    world.arrive("acme", 100)
    for _ in range(num_steps):
        world.step()
    return world, world.readers[10]


def test_what_was_made_and_never_delivered_is_given_back_when_it_is_gone_on_with() -> None:
    world, reader = begun()
    world.lose_scheduler(2, 0)
    assert world.core.ledger.in_flight[10].output_tokens == 5
    commands = world.tell(reader.arrived(resent=True, attempt=1, made_tokens=3, waited_s=2.0))
    assert commands == [Resume(10, "only", 2.0)]
    assert world.core.ledger.in_flight[10].output_tokens == 3


def test_what_nobody_computes_keeps_its_place_until_it_is_given_up() -> None:
    world, _ = begun()
    before = world.core.window.reserved_tokens
    commands = world.tell(SchedulerLost(RESUME_S))
    assert commands[0] == Strand(10, 0)
    assert isinstance(commands[1], WakeAt)
    assert world.core.window.reserved_tokens == before
    world.now += RESUME_S
    (settled,) = world.tell(Woke())
    assert (settled.output_tokens, settled.outcome) == (3, "scheduler_lost")


def test_a_client_that_leaves_meanwhile_settles_it_at_once() -> None:
    world, _ = begun()
    world.tell(SchedulerLost(RESUME_S))
    (settled,) = world.tell(CancelRequested(10))
    assert (settled.output_tokens, settled.outcome) == (3, "cancelled")
    world, _ = begun(num_steps=0)
    world.tell(SchedulerLost(RESUME_S))
    (settled,) = world.tell(CancelRequested(10))
    assert (settled.prompt_tokens, settled.outcome) == (0, "scheduler_lost")


def test_a_request_that_was_given_up_is_refused_if_anything_was_made_of_it_and_else_comes_anew() -> None:
    world, reader = begun()
    world.tell(SchedulerLost())
    (refused,) = world.tell(reader.arrived(resent=True, attempt=1, made_tokens=3))
    assert (refused.code, "after 3 tokens" in refused.message) == ("scheduler_lost", True)
    world, reader = begun(num_steps=0)
    world.tell(SchedulerLost())
    world.tell(CAPACITY)
    (released,) = world.tell(reader.arrived(resent=True, attempt=1, waited_s=2.0))
    assert isinstance(released, Release)
    assert released.waited_s == 2.0


def test_one_that_was_sent_again_because_admission_was_lost_is_sent_on_and_charged_no_second_time() -> None:
    world, reader = begun()
    charged = world.core.ledger.in_flight[10].charged
    assert world.tell(reader.arrived(resent=True)) == [Resume(10, "only", 0.0)]
    assert (world.core.ledger.in_flight[10].charged, world.core.ledger.in_flight[10].output_tokens) == (charged, 3)
    assert world.tell(reader.arrived()) == []


def test_the_end_of_an_attempt_that_was_lost_is_not_the_end_of_the_one_after_it() -> None:
    world, reader = begun()
    world.tell(reader.arrived(resent=True, attempt=1, made_tokens=2))
    assert world.tell(RequestFinished(10, 5, "cancelled", 0, RESUME_S)) == []
    (settled,) = world.tell(RequestFinished(10, 7, "finished", 1))
    assert settled.output_tokens == 7
