"""Whatever happens to requests, and however late a store answers: every amount is given back or kept exactly once."""

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.admission.core import AdmissionCore
from policies.admission.limits.algorithms import NS_PER_S
from policies.admission.limits.book import LimitBook
from policies.admission.limits.items import LimitItem
from policies.commands import Adjust, Counted, Refuse, Release, Reserve, Settle, WakeAt, Withdraw
from policies.events import (
    Arrived,
    CancelRequested,
    CapacityChanged,
    Invalid,
    PolicyApplied,
    RequestFinished,
    SchedulerLost,
    Started,
    TokensProduced,
    Woke,
)
from tests.policies.admission.test_admission_core import document

DAY: dict[str, Any] = {"rate_per_day": 1}
"""What is taken does not come back within a history, but by a refund."""
LIMITS = [
    {"scope": "key", "dimension": "requests", **DAY, "burst": 12, "algorithm": "gcra"},
    {"scope": "tenant", "dimension": "total_tokens", **DAY, "burst": 900},
    {"scope": "project", "dimension": "output_tokens", "rate_per_day": 300, "algorithm": "sliding_log"},
    {"scope": "tenant", "dimension": "concurrency", "max": 3},
    {"scope": "model", "dimension": "queued", "max": 3},
    {"scope": "model", "dimension": "prompt_tokens", **DAY, "burst": 5000, "mode": "only_when_saturated"},
]


class Life:
    """A history of an admission core beside a store that answers when it likes; amounts are counted apart from both."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)  # noqa: S311  a seeded history, not a secret
        self.core = AdmissionCore()
        self.book = LimitBook()
        self.now = 0.0
        self.number = 0
        self.unanswered: list[Reserve] = []
        self.in_flight: dict[int, int] = {}
        self.open: dict[int, None] = {}
        self.ends: Counter[int] = Counter()
        self.balance: Counter[tuple[int, str]] = Counter()
        """By request and name of a limit: taken less given back."""
        self.items: dict[str, LimitItem] = {}
        self.tell(Started(wall_s=0.0))
        queue = {"per_tenant_max": 5, "total_max": 9, "ttl_s": 20}
        self.tell(PolicyApplied(1, document(fairness={"window_tokens": 300}, limits=LIMITS, queue=queue)))
        self.tell(CapacityChanged(num_executors=1, kv_tokens=10_000, max_sequence_tokens=200))

    @property
    def now_ns(self) -> int:
        return 10**18 + round(self.now * NS_PER_S)

    def tell(self, event: Any) -> None:
        commands = self.core.handle(event, self.now)
        self.core.check()
        for command in commands:
            match command:
                case Reserve():
                    self.unanswered.append(command)
                case Adjust():
                    self.book.adjust(command.request, command.items, self.now_ns)
                    for item, actual in command.items:
                        assert self.balance[command.request, item.name] == item.amount, "not what had been taken"
                        assert actual >= 0
                        self.balance[command.request, item.name] = actual
                case Release():
                    self.in_flight[command.request] = 0
                case Refuse() | Withdraw() | Settle() | Counted():
                    self.ends[command.request] += 1
                    self.open.pop(command.request, None)
                case WakeAt():
                    assert command.at_s >= self.now, "a wake-up in the past would come again and again"
        self.book.check()

    def answer(self) -> None:
        command = self.unanswered.pop(0)
        answer = self.book.reserve(command.request, command.items, self.now_ns)
        if type(answer).__name__ == "Reserved":
            for item in command.items:
                self.balance[command.request, item.name] += item.amount
                self.items[item.name] = item
        self.tell(answer)

    def step(self) -> None:
        self.now += self.draw.choice([0.0, 0.1, 0.5, 1.0])
        draw = self.draw.random()
        if draw < 0.3:
            self.arrive()
        elif draw < 0.65 and self.unanswered:
            self.answer()
        elif draw < 0.75 and self.in_flight:
            got = self.draw.sample(list(self.in_flight), min(3, len(self.in_flight)))
            for request in got:
                self.in_flight[request] += 1
            self.tell(TokensProduced(got))
        elif draw < 0.9 and self.in_flight:
            self.end(self.draw.choice(list(self.in_flight)))
        elif draw < 0.95 and self.open:
            self.tell(CancelRequested(self.draw.choice(list(self.open))))
        elif draw < 0.96:
            self.in_flight.clear()
            self.tell(SchedulerLost())
            self.tell(CapacityChanged(num_executors=1, kv_tokens=10_000, max_sequence_tokens=200))
        else:
            self.tell(Woke())

    def arrive(self) -> None:
        self.number += 10
        self.open[self.number] = None
        tenant = self.draw.choice(["a", "b"])
        key = f"{tenant}-{self.draw.randrange(2)}"
        if self.draw.random() < 0.1:
            self.tell(Invalid(self.number, tenant, key=key))
            return
        prompt, output = self.draw.choice([(50, 50), (10, 100), (120, 20), (190, 50)])
        self.tell(Arrived(self.number, tenant, "free", prompt, output, self.draw.choice([1, 1, 2]), key=key))

    def end(self, request: int) -> None:
        outcome = self.draw.choice(["finished", "cancelled", "error"])
        self.tell(RequestFinished(request, self.in_flight.pop(request), outcome))
        self.tell(RequestFinished(request, 1, outcome))

    def settle(self) -> None:
        """Until nothing is left to happen."""
        while self.unanswered or self.in_flight or self.open:
            while self.unanswered:
                self.answer()
            for request in list(self.in_flight):
                self.end(request)
            if self.open and not self.in_flight and not self.unanswered:
                self.now += 21.0
                self.tell(Woke())


def run(seed: int, num_steps: int = 120) -> Life:
    life = Life(seed)
    for _ in range(num_steps):
        life.step()
    life.settle()
    return life


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_at_the_end_every_request_has_one_answer_and_only_what_was_used_is_taken(seed: int) -> None:
    life = run(seed)
    assert life.core.intake.pending == {}
    assert life.core.intake.taken == {}
    assert life.core.intake._growing == {}
    kept: Counter[str] = Counter()
    for (_, name), amount in life.balance.items():
        kept[name] += amount
    for name, item in life.items.items():
        assert life.book.used(item, life.now_ns) == kept[name]
        assert item.algorithm != "gauge" or not kept[name]
    assert set(life.ends.values()) <= {1}
    assert sorted(life.ends) == list(range(10, life.number + 1, 10))


def test_a_history_uses_every_dimension() -> None:
    life = run(seed=3, num_steps=400)
    kinds = {life.items[name].dimension for (_, name), amount in life.balance.items() if amount}
    assert kinds == {"requests", "total_tokens", "output_tokens", "prompt_tokens"}


def test_the_property_fails_when_a_refund_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policies.admission.intake.Intake.released", lambda *_: ())
    monkeypatch.setattr("policies.admission.intake.Intake.settle", lambda *_, **__: None)
    with pytest.raises(AssertionError, match="its reservation is not"):
        run(seed=3, num_steps=400)
