"""Histories for the theorems: an admission core alone, before executors that make one token per request and step.

Owns the traces, the virtual clock and what really happened to every request. Preempted requests recompute for a few
steps, usage may come late or be lost, requests are cancelled or fail: whatever the core is told, `made` and `told` here
are counted apart from it.
"""

import random
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, NamedTuple

import yaml

from policies.admission.core import AdmissionCore
from policies.commands import CancelReleased, Command, Refuse, Release, Settle, Withdraw, encode
from policies.events import (
    Arrived,
    CancelRequested,
    CapacityChanged,
    PolicyApplied,
    RequestFinished,
    Started,
    TokensProduced,
)

STEP_S = 1.0
KV_TOKENS = 1000
LONGEST_TOKENS = 500
Path = tuple[str, ...]


class Ask(NamedTuple):
    """One request of a trace."""

    at_s: float
    tenant: str
    prompt: int
    output: int
    """What each choice makes if nobody ends it before."""
    declared: int
    weight: float = 1.0
    choices: int = 1
    cached: int = 0
    cancel_after_s: float | None = None
    fails_after: int | None = None
    """Tokens of the first choice after which the executor gives up."""
    project: str = "default"
    key: str = ""

    @property
    def final_tokens(self) -> int:
        """Its final size, cancelled or not."""
        return self.prompt + self.choices * self.output


class Conditions(NamedTuple):
    """What the executors and the way to them are like."""

    executors: int = 1
    late_steps: int = 0
    """At most so many steps pass before usage is heard of."""
    lost: float = 0.0
    """Share of usage reports that never come."""
    preempted: float = 0.0
    """Chance of a request to be preempted in a step; it then recomputes what it had, silently."""


class Life:
    """What has happened to a request."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.state = "queued"
        self.made = 0
        """Output tokens that exist, all choices together."""
        self.told = 0
        """Of those the core has heard of."""
        self.stalled = 0
        self.executor = 0
        self.released_s: float | None = None
        self.refunded = False
        """It failed before its first token, so its prompt was free."""
        self.hit = False
        """Its prefix hits have been reported."""


def document(**fairness: Any) -> bytes:
    """A policy whose only interesting section is `fairness`."""
    policy = {
        "version": 1,
        "name": "test",
        "classes": [{"name": "all", "ttft_s": 1.0, "tbt_s": 0.1}],
        "batching": {"stages": [{"decode": {}}, {"prefill": {"from": "waiting"}}]},
        "fairness": fairness,
        "queue": {"per_tenant_max": 100_000, "total_max": 1_000_000, "ttl_s": 1e9},
    }
    return yaml.safe_dump(policy).encode()


class World:
    """A core, its executors, and who looks on after every event."""

    def __init__(
        self,
        policy: bytes,
        trace: list[Ask],
        conditions: Conditions | None = None,
        *,
        seed: int = 0,
        check: bool = True,
    ) -> None:
        self.draw = random.Random(seed)  # noqa: S311  a seeded history, not a secret
        self.conditions = Conditions() if conditions is None else conditions
        self.core = AdmissionCore()
        self.now = 0.0
        self.lives: dict[int, Life] = {}
        self.waiting: dict[str, list[int]] = {}
        """By tenant, oldest first; every tenant of the trace has an entry."""
        self.in_flight: dict[int, Life] = {}
        self.settled: list[Settle] = []
        self.ends: list[int] = []
        self.log: list[bytes] = []
        self.watchers: list[Callable[[Any, list[Command]], None]] = []
        self._check = check
        self._heap: list[tuple[float, int, str, Any]] = []
        self._numbers = 0
        self._stepping: set[int] = set()
        self._policy = policy
        for number, ask in enumerate(trace, start=1):
            self.waiting.setdefault(ask.tenant, [])
            self._later(ask.at_s, "arrive", (number * 8, ask))

    @property
    def names(self) -> list[str]:
        """All tenants of the trace."""
        return list(self.waiting)

    def run(self, until_s: float = float("inf")) -> "World":
        """Go on until nothing is left to happen, or to that time."""
        if not self.log:
            self.tell(Started(wall_s=0.0))
            self.tell(PolicyApplied(1, self._policy))
            self.tell(CapacityChanged(self.conditions.executors, KV_TOKENS * self.conditions.executors, LONGEST_TOKENS))
        while self._heap and self._heap[0][0] <= until_s:
            self.now, _, kind, payload = heappop(self._heap)
            getattr(self, f"_{kind}")(payload)
        return self

    def tell(self, event: Any) -> None:
        """Hand the core an event and do what it asks for."""
        commands = self.core.handle(event, self.now)
        if self._check:
            self.core.check()
        self.log.append(encode(commands))
        for command in commands:
            self._perform(command)
        for watch in self.watchers:
            watch(event, commands)

    def _perform(self, command: Command) -> None:
        match command:
            case Release():
                life = self.lives[command.request]
                self.waiting[life.ask.tenant].remove(command.request)
                self.in_flight[command.request] = life
                life.state, life.released_s = "in flight", self.now
                life.executor = command.request // 8 % self.conditions.executors
                if life.executor not in self._stepping:
                    self._stepping.add(life.executor)
                    self._later(self.now + STEP_S, "step", life.executor)
            case Settle():
                self.settled.append(command)
                self.ends.append(command.request)
            case Withdraw() | Refuse():
                life = self.lives[command.request]
                self.waiting[life.ask.tenant].remove(command.request)
                life.state = "gone"
                self.ends.append(command.request)
            case CancelReleased():
                self._later(self.now + self.draw.choice([0.0, STEP_S]), "end", (command.request, "cancelled"))

    # --- what happens ---------------------------------------------------------------------------------------------

    def _later(self, at_s: float, kind: str, payload: Any) -> None:
        self._numbers += 1
        heappush(self._heap, (at_s, self._numbers, kind, payload))

    def _arrive(self, arrival: tuple[int, Ask]) -> None:
        request, ask = arrival
        self.lives[request] = Life(ask)
        self.waiting[ask.tenant].append(request)
        if ask.cancel_after_s is not None:
            self._later(self.now + ask.cancel_after_s, "cancel", request)
        self.tell(
            Arrived(
                request,
                ask.tenant,
                "free",
                ask.prompt,
                ask.declared,
                num_choices=ask.choices,
                weight=ask.weight,
                project=ask.project,
                key=ask.key,
                output_tokens=ask.output,
            )
        )

    def _cancel(self, request: int) -> None:
        self.tell(CancelRequested(request))

    def _step(self, executor: int) -> None:
        sequences: list[int] = []
        ended: list[tuple[int, str]] = []
        for request, life in self.in_flight.items():
            if life.executor != executor:
                continue
            if life.stalled:
                life.stalled -= 1
                continue
            if life.made and self.draw.random() < self.conditions.preempted:
                life.stalled = self.draw.randint(1, 4)
                continue
            ask = life.ask
            if ask.fails_after is not None and life.made >= ask.fails_after:
                ended.append((request, "error"))
                continue
            choices = min(ask.choices, ask.choices * ask.output - life.made)
            life.made += choices
            sequences += range(request, request + choices)
            if life.made == ask.choices * ask.output:
                ended.append((request, "finished"))
        self._report(sequences)
        for end in ended:
            self._end(end)
        if any(life.executor == executor for life in self.in_flight.values()):
            self._later(self.now + STEP_S, "step", executor)
        else:
            self._stepping.discard(executor)

    def _report(self, sequences: list[int]) -> None:
        conditions = self.conditions
        if not sequences or self.draw.random() < conditions.lost:
            return
        late = self.draw.randint(0, conditions.late_steps)
        if late:
            self._later(self.now + late * STEP_S, "usage", sequences)
        else:
            self._usage(sequences)

    def _usage(self, sequences: list[int]) -> None:
        hits = []
        for sequence in sequences:
            request = sequence - sequence % 8
            life = self.in_flight.get(request)
            if life is not None:
                life.told += 1
                if life.ask.cached and not life.hit:
                    life.hit = True
                    hits.append((request, life.ask.cached))
        self.tell(TokensProduced(sequences, hits))

    def _end(self, end: tuple[int, str]) -> None:
        request, outcome = end
        life = self.in_flight.pop(request, None)
        if life is None:
            return
        life.state = outcome
        life.refunded = outcome == "error" and not life.made
        self.tell(RequestFinished(request, life.made, outcome))


def random_trace(
    seed: int, *, num_asks: int = 70, weights: bool = False, calm: bool = False, keys: int = 0
) -> list[Ask]:
    """Tenants that come in bursts between silences of every length, so that joining and rejoining the backlog happens
    beside others' work and beside none.

    `calm`: every request runs to its own end and has declared it. `keys`: projects and keys a tenant spreads over.
    """
    draw = random.Random(seed)  # noqa: S311  a seeded history, not a secret
    weight = {f"tenant{number}": draw.choice([0.5, 1.0, 2.0, 4.0]) if weights else 1.0 for number in range(4)}
    asks: list[Ask] = []
    at_s = 0.0
    while len(asks) < num_asks:
        at_s += draw.choice([0.0, 0.0, 1.0, 5.0, 20.0, 80.0])
        bursting = draw.sample(list(weight), draw.randint(1, 3))
        for _ in range(draw.choice([1, 3, 12])):
            at_s += draw.choice([0.0, 0.0, 0.1, 1.0])
            declared = draw.randint(1, 20)
            prompt = draw.randint(1, 20)
            tenant = draw.choice(bursting)
            ask = Ask(at_s, tenant, prompt, declared, declared, weight[tenant])
            if keys:
                ask = ask._replace(project=f"p{draw.randrange(2)}", key=f"k{draw.randrange(keys)}")
            if not calm:
                ask = ask._replace(
                    output=draw.randint(1, declared),
                    choices=draw.choice([1, 1, 1, 2]),
                    cancel_after_s=draw.choice([None, None, None, 0.0, 3.5, 20.0]),
                    fails_after=draw.choice([None, None, None, None, 0, 2]),
                    cached=draw.choice([0, 0, prompt // 2]),
                )
            asks.append(ask)
    return asks
