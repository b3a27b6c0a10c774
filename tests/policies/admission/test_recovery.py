"""A core that goes on from what one before it kept: whatever was lost on the way, each token is charged once and each
reservation given back once.
"""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from policies.admission import saved
from policies.admission.core import AdmissionCore
from policies.admission.intake import STEP_TOKENS
from policies.admission.ledger import Charge
from policies.admission.limits.book import LimitBook
from policies.admission.nodes import Branch, Node
from policies.admission.recovery import state_of
from policies.admission.saved import Saved
from policies.commands import Adjust, CancelReleased, Command, Release, Reserve, Settle
from policies.events import (
    Arrived,
    CancelRequested,
    CapacityChanged,
    HeldAtScheduler,
    PolicyApplied,
    RequestFinished,
    Restored,
    SchedulerHolds,
    SchedulerLost,
    Started,
    TokensProduced,
)

POLICY = b"""
version: 1
name: test
classes: [{name: only, ttft_s: 1.0, tbt_s: 0.1}]
classify: [{class: only}]
limits:
  - {scope: tenant, dimension: concurrency, max: 1000}
  - {scope: tenant, dimension: queued, max: 1000}
  - {scope: key, dimension: total_tokens, rate_per_day: 100000000}
  - {scope: tenant, dimension: requests, rate_per_min: 100000}
fairness: {window_tokens: 400, levels: LEVELS}
batching: {stages: [{decode: {}}, {prefill: {from: waiting}}]}
"""
ONE_LEVEL, THREE_LEVELS = (POLICY.replace(b"LEVELS", levels) for levels in (b"[tenant]", b"[tenant, project, key]"))
CAPACITY = CapacityChanged(num_executors=1, kv_tokens=1000, max_sequence_tokens=500)
TENANTS = {"acme": 1.0, "globex": 2.0, "initech": 0.5}
NOW_NS = 10**18
"""Time stands still for the limits: nothing comes back by itself."""


class World:
    """An admission process and what outlives it: a store, a scheduler, and the requests that clients sent."""

    def __init__(self, policy: bytes = ONE_LEVEL) -> None:
        self.policy = policy
        self.rows: dict[str, bytes] = {}
        self.kept_levels: dict[str, Any] = LimitBook().dump()
        self.kept_usage: Counter[str] = Counter()
        self.kept_end = 0
        self.held: dict[int, HeldAtScheduler] = {}
        self.ends: dict[int, tuple[HeldAtScheduler, str]] = {}
        """Not acknowledged, by number."""
        self.num_ends = 0
        self.truth: Counter[str] = Counter()
        """What was really used."""
        self.now = 0.0
        self.num_requests = 0
        self.sent: dict[int, HeldAtScheduler] = {}
        self.is_deaf = False
        """The stream to the scheduler has broken, and nobody has noticed yet."""
        self.wall_s = 1e9
        self.start()

    # --- one process --------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.core, self.book, self.usage = AdmissionCore(), LimitBook(), Counter[str]()
        self.saved = Saved(self.core)
        self.book.load(self.kept_levels, NOW_NS)
        self.settled_end = self.kept_end
        self.tell(Started(self.wall_s))
        self.tell(PolicyApplied(1, self.policy))
        if self.rows:
            self.tell(Restored(state_of(self.rows)))
        self.agree()

    def tell(self, event: Any) -> None:
        events = [event]
        while events:
            event = events.pop(0)
            commands = self.core.handle(event, self.now)
            self.saved.observe(self.now, event, commands)
            for command in commands:
                events += self.perform(command)
            self.core.check()

    def perform(self, command: Command) -> list[Any]:
        match command:
            case Reserve():
                return [self.book.reserve(command.request, command.items, NOW_NS)]
            case Adjust():
                self.book.adjust(command.request, command.items, NOW_NS)
            case Release() if not self.is_deaf:
                self.held[command.request] = self.sent[command.request]
            case Settle():
                self.usage.update(tokens=command.output_tokens, prompts=command.prompt_tokens)
                self.usage["requests"] += bool(command.prompt_tokens)
        return []

    def agree(self) -> None:
        """The stream to the scheduler is up: what this process has settled already, the shell leaves out."""
        self.is_deaf = False
        ends = {number: end for number, end in self.ends.items() if number > self.settled_end}
        self.tell(SchedulerHolds((*self.held.values(), *(held for held, _ in ends.values()))))
        for number, (held, outcome) in ends.items():
            self.finished(number, held, outcome)
        self.tell(CAPACITY)

    def finished(self, number: int, held: HeldAtScheduler, outcome: str) -> None:
        self.tell(RequestFinished(held.request, held.output_tokens, outcome))
        self.settled_end = max(self.settled_end, number)

    # --- what happens -------------------------------------------------------------------------------------------

    def arrive(self, tenant: str, prompt: int, output: int, num_choices: int) -> None:
        request = self.num_requests = self.num_requests + 10
        project, key = f"project {request % 20}", f"key {tenant} {request % 30}"
        held = HeldAtScheduler(
            request, tenant, project, key, "only", TENANTS[tenant], prompt, output, num_choices, 0, tier="free"
        )
        self.sent[request] = held
        self.tell(
            Arrived(
                request,
                tenant,
                "free",
                prompt,
                output,
                num_choices=num_choices,
                weight=TENANTS[tenant],
                project=project,
                key=key,
            )
        )

    def step(self, is_heard: bool) -> None:
        """Every request gets a token for its first choice; the fourth says what was cached."""
        hits = []
        for request, before in self.held.items():
            held = self.held[request] = replace(before, output_tokens=before.output_tokens + 1)
            if held.output_tokens == 4:
                self.held[request] = replace(held, cached_tokens=held.prompt_tokens // 2)
                hits.append((request, held.prompt_tokens // 2))
        self.is_deaf |= not is_heard
        if not self.is_deaf and self.held:
            self.tell(TokensProduced(list(self.held), hits))

    def end(self, index: int, outcome: str, is_heard: bool) -> None:
        if self.held:
            held = self.held.pop(list(self.held)[index % len(self.held)])
            if outcome == "cancelled":
                # Tokens made after the reader left do not count.
                held = replace(held, output_tokens=max(0, held.output_tokens - 1))
            self.num_ends += 1
            self.ends[self.num_ends] = (held, outcome)
            self.count(held, outcome, 1)
            self.is_deaf |= not is_heard
            if not self.is_deaf:
                self.finished(self.num_ends, held, outcome)

    def count(self, request: HeldAtScheduler | Charge, outcome: str, sign: int) -> None:
        if request.output_tokens or outcome in ("finished", "cancelled"):
            used = {"tokens": request.output_tokens, "prompts": request.prompt_tokens, "requests": 1}
            self.truth.update({name: sign * count for name, count in used.items()})

    def keep(self) -> None:
        rows, is_whole = self.saved.take()
        self.rows = {} if is_whole else self.rows
        self.rows |= {name: row for name, row in rows.items() if row is not None}
        for name in [name for name, row in rows.items() if row is None]:
            self.rows.pop(name, None)
        self.kept_levels = self.book.dump()
        self.kept_usage += self.usage
        self.usage = Counter()
        self.kept_end = self.settled_end
        self.ends = {number: end for number, end in self.ends.items() if number > self.kept_end}

    def kill(self, num_lost: int) -> None:
        """The process dies; the last requests that it released never got to the scheduler."""
        lost = (
            [request for request, held in self.held.items() if not held.output_tokens][-num_lost:] if num_lost else []
        )
        for request in lost:
            del self.held[request]
        self.start()

    def lose_stream(self) -> None:
        self.tell(CapacityChanged(0, 0, 0))
        self.step(is_heard=False)
        self.agree()

    def lose_scheduler(self) -> None:
        """What it had is gone, and nobody will tell of it; delivered is what was heard of."""
        for number, (held, outcome) in self.ends.items():
            if number > self.settled_end:
                self.count(held, outcome, -1)
        self.held.clear()
        self.ends.clear()
        self.num_ends = self.kept_end = self.settled_end = 0
        for charge in self.core.ledger.in_flight.values():
            self.count(charge, "scheduler_lost", 1)
        self.tell(SchedulerLost())
        self.keep()
        self.agree()

    def finish_all(self) -> None:
        self.agree()
        while self.held or self.core.queue.waiting:
            assert self.held, "what waits is not released although nothing is in flight"
            self.step(is_heard=True)
            self.end(0, "finished", is_heard=True)
        self.keep()


def taken(book: LimitBook, dimension: str) -> int:
    """Units of a dimension, over all whose limits these are."""
    return sum(meter.used(NOW_NS) for name, meter in book._meters.items() if f":{dimension}:" in name)


happenings = st.lists(
    st.one_of(
        st.tuples(
            st.just("arrive"), st.sampled_from(list(TENANTS)), st.integers(1, 90), st.integers(8, 90), st.integers(1, 3)
        ),
        st.tuples(st.just("step"), st.booleans()),
        st.tuples(
            st.just("end"), st.integers(0, 9), st.sampled_from(["finished", "cancelled", "error"]), st.booleans()
        ),
        st.tuples(st.just("keep")),
        st.tuples(st.just("kill"), st.integers(0, 2)),
        st.tuples(st.just("lose_stream")),
        st.tuples(st.just("lose_scheduler")),
    ),
    max_size=40,
)


@given(happenings, st.sampled_from([ONE_LEVEL, THREE_LEVELS]))
@settings(max_examples=40, deadline=None)
def test_whatever_is_lost_each_token_counts_once_and_nothing_stays_reserved(happened: list[Any], policy: bytes) -> None:
    world = World(policy)
    for name, *arguments in happened:
        getattr(world, name)(*arguments)
    world.finish_all()
    assert world.core.ledger.in_flight == {}
    assert world.core.intake.taken == {}
    assert world.core.recovery.unclaimed == {}
    assert world.core.window.reserved_tokens == 0
    assert world.kept_usage == world.truth
    assert [name for name in world.rows if name.startswith(("charge:", "taken:"))] == []
    assert taken(world.book, "concurrency") == taken(world.book, "queued") == 0
    # Also what a process let in in its last moments, of which no row tells.
    assert taken(world.book, "total_tokens") == world.truth["tokens"] + world.truth["prompts"]


def test_what_was_let_in_in_a_processs_last_moments_still_takes_of_the_limits() -> None:
    of_a_tier = b"limits:\n  - {scope: tenant, dimension: prompt_tokens, rate_per_day: 9000, when: {tier: free}}"
    world = World(ONE_LEVEL.replace(b"limits:", of_a_tier))
    world.arrive("acme", 60, 200, 1)
    world.step(is_heard=True)
    world.kill(0)
    amounts = {"concurrency": 1, "queued": 0, "requests": 1, "prompt_tokens": 60, "total_tokens": 60 + 1 + STEP_TOKENS}
    assert {dimension: taken(world.book, dimension) for dimension in amounts} == amounts
    for _ in range(2 * STEP_TOKENS):
        world.step(is_heard=True)
    assert taken(world.book, "total_tokens") >= 60 + 1 + 2 * STEP_TOKENS
    world.finish_all()
    assert taken(world.book, "total_tokens") == world.truth["tokens"] + world.truth["prompts"]


def counters(core: AdmissionCore) -> dict[str, float]:
    nodes: list[Node] = [*core.queue.accounts.values()]
    for node in nodes:
        nodes += node.children.values() if isinstance(node, Branch) else ()
    return {node.id: node.counter for node in nodes}


def busy(policy: bytes) -> World:
    """Two tenants in flight and waiting."""
    world = World(policy)
    for tenant, prompt in (("initech", 90), ("acme", 60), ("globex", 50), ("acme", 70), ("globex", 40), ("acme", 80)):
        world.arrive(tenant, prompt, 60, 1)
    for _ in range(5):
        world.step(is_heard=True)
    world.end(0, "finished", is_heard=True)
    world.keep()
    return world


@pytest.mark.parametrize("policy", [ONE_LEVEL, THREE_LEVELS])
def test_counters_and_the_last_that_left_are_as_they_were(policy: bytes) -> None:
    world = busy(policy)
    before, last_left = counters(world.core), world.core.queue.last_left
    assert len(before) == (2 if policy is ONE_LEVEL else 9)
    assert all(before.values())
    world.start()
    after = counters(world.core)
    # An idle key below the level need not be remembered: it would be lifted to it.
    assert after == pytest.approx({name: before[name] for name in after})
    assert {"acme", "globex"} <= after.keys()
    assert last_left is not None
    assert world.core.queue.last_left is not None
    assert world.core.queue.last_left.name == last_left.name


def test_a_shift_of_all_counters_leaves_the_rows_of_those_that_did_nothing_true() -> None:
    world = busy(ONE_LEVEL)
    world.core.queue._rebase(world.core.queue.root, 50.0)
    rows, _ = world.saved.take()
    assert list(rows) == ["core", "progress"]
    world.rows |= {name: row for name, row in rows.items() if row is not None}
    before = counters(world.core)
    world.start()
    after = counters(world.core)
    assert after == pytest.approx({name: before[name] for name in after})


def test_what_changed_since_is_enough_to_bring_the_rows_up_to_date() -> None:
    world = busy(THREE_LEVELS)
    for _ in range(3):
        world.step(is_heard=True)
        world.arrive("globex", 30, 20, 2)
        world.end(1, "cancelled", is_heard=True)
        rows, is_whole = world.saved.take()
        assert not is_whole
        world.rows |= rows
    changed = {name: row for name, row in world.rows.items() if row is not None}
    world.saved.not_kept()
    whole, is_whole = world.saved.take()
    assert is_whole
    assert changed == whole


def test_after_too_many_changes_everything_is_taken_instead(monkeypatch) -> None:
    world = busy(ONE_LEVEL)
    monkeypatch.setattr(saved, "MOST_NOTED", 3)
    for _ in range(5):
        world.arrive("acme", 10, 10, 1)
    rows, is_whole = world.saved.take()
    assert is_whole
    requests = {*world.core.ledger.in_flight, *world.core.queue.waiting}
    assert {name for name in rows if name.startswith("taken:")} == {f"taken:{request}" for request in requests}


def test_a_cancel_that_may_have_gone_with_the_stream_is_passed_on_again() -> None:
    world = busy(ONE_LEVEL)
    first = next(iter(world.core.ledger.in_flight))
    world.core.handle(CancelRequested(first, "client_gone"), world.now)
    commands = world.core.handle(SchedulerHolds(tuple(world.held.values())), world.now)
    assert [each.request for each in commands if isinstance(each, CancelReleased)] == [first]


def test_counters_that_are_too_old_are_worth_nothing_and_what_is_in_flight_still_counts() -> None:
    world = busy(ONE_LEVEL)
    world.wall_s += 3599.0
    world.start()
    assert not world.core.recovery.forgot_counters
    world.wall_s += 2.0
    world.start()
    assert world.core.recovery.forgot_counters
    assert counters(world.core) == {"acme": 0.0, "globex": 0.0}
    assert world.core.ledger.in_flight.keys() == world.held.keys()


def test_where_the_levels_are_others_now_tenants_keep_their_counters() -> None:
    world = busy(THREE_LEVELS)
    before = counters(world.core)
    world.policy = ONE_LEVEL
    world.start()
    assert counters(world.core) == pytest.approx({name: before[name] for name in ("acme", "globex")})


def test_the_bound_covers_what_counters_may_be_apart_from_before() -> None:
    world = busy(ONE_LEVEL)
    bound = world.core.bound
    world.policy = ONE_LEVEL.replace(b"window_tokens: 400", b"window_tokens: 100")
    world.start()
    world.finish_all()
    assert world.core.bound >= bound
