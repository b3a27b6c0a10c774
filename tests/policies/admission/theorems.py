"""The fairness theorems as measurements: how near to its bound each comes, over everything a `World` does.

Written from the statements (fairness specification, 4.2; Sheng et al., OSDI 2024) and from what happened, not from the
core: service is counted here, and the sizes in flight are the real final ones. Only F1 reads the core's counters. A
figure above 1 is a theorem broken.
"""

from collections.abc import Callable, Iterable
from typing import Any

from policies.admission.nodes import Branch
from policies.commands import Command, Release
from policies.events import Arrived
from tests.policies.admission.worlds import Ask, World

Cost = Callable[[int, int], float]
"""Of (prompt tokens, output tokens)."""


def weighted(prompt: float, output: float) -> Cost:
    """Linear prices."""
    return lambda num_prompt, num_output: prompt * num_prompt + output * num_output


def dearest(cost: Cost) -> Callable[[int, int], float]:
    """U of a general cost: what M tokens cost at most, in requests of the dearest size (F8)."""
    known: dict[int, float] = {}

    def unit_bound(window_tokens: int, longest_prompt_tokens: int) -> float:
        del longest_prompt_tokens
        if window_tokens not in known:
            sizes = ((p, q) for p in range(1, window_tokens + 1) for q in range(window_tokens - p + 1))
            known[window_tokens] = window_tokens * max((cost(p, q) / (p + q) for p, q in sizes), default=0.0)
        return known[window_tokens]

    return unit_bound


class Theorems:
    """Watches a world. `worst[name]` is the largest (measured / bound) of theorem `name` so far.

    `cost` is the policy's; `unit_bound(M, L)` its U. All services are per weight, and the bounds over the smallest.
    They hold among the children of one node: of the root, tenants; of the tenant `parent`, its projects (F10).
    """

    def __init__(
        self,
        world: World,
        cost: Cost,
        unit_bound: Callable[[int, int], float],
        late_price: float = 0.0,
        parent: str | None = None,
    ) -> None:
        self._parent = parent
        self.size_tokens: Callable[[Ask], int] = lambda ask: ask.final_tokens
        """What `M` sums: real final sizes; with a predictor what is reserved, as no more than that is charged ahead."""
        self.worst = dict.fromkeys(("F1", "F2", "F3", "F4", "F5"), 0.0)
        self.largest_pair_difference = 0.0
        self._world, self._cost, self._unit_bound, self._late_price = world, cost, unit_bound, late_price
        self.most_in_flight_tokens = 0
        self.longest_prompt_tokens = 0
        self.most_late_tokens = 0
        """`D`: tokens of one tenant that existed and that the core had not heard of."""
        self._smallest_weight = 1.0
        self._asked: dict[str, float] = {}
        self._since: dict[str, _Since] = {}
        self._ranges: dict[tuple[str, str], tuple[float, float]] = {}
        self._alone: dict[int, float] = {}
        """First requests of a tenant that had nothing queued or in flight -> others' service when it came."""
        world.watchers.append(self.look)

    def _whose(self, ask: Ask) -> str | None:
        """The child that asks; None: it is none of this node's."""
        if self._parent is None:
            return ask.tenant
        return ask.project if ask.tenant == self._parent else None

    def _weight(self, ask: Ask) -> float:
        return ask.weight if self._parent is None else 1.0

    def _gap(self) -> float:
        queue = self._world.core.queue
        if self._parent is None:
            return self._world.core.gap
        node = queue.accounts.get(self._parent)
        return queue.gap(node) if isinstance(node, Branch) else 0.0

    @property
    def bound(self) -> float:
        """U over the smallest weight, with what was really in flight so far."""
        # What is given back of a prompt lowers a counter as far as one prompt would have raised it, for each in flight.
        refunds = any(life.hit or life.refunded for life in self._world.lives.values())
        longest = self.most_in_flight_tokens if refunds else self.longest_prompt_tokens
        return self._unit_bound(self.most_in_flight_tokens, longest) / self._smallest_weight

    @property
    def late(self) -> float:
        """What late usage adds to every bound (F12)."""
        return 2 * self._late_price * self.most_late_tokens / self._smallest_weight

    def look(self, event: Any, commands: list[Command]) -> None:
        """After every event."""
        world = self._world
        waiting: dict[str, list[int]] = {}
        for request, life in world.lives.items():
            whose = self._whose(life.ask)
            if whose is not None:
                queue = waiting.setdefault(whose, [])
                if life.state == "queued":
                    queue.append(request)
        service = self.service(waiting)
        if isinstance(event, Arrived):
            self._arrived(event.request, service)
        for command in commands:
            if isinstance(command, Release):
                self._released(command, service)
        self._count_late()
        if not self.bound:
            return
        backlogged = [name for name, queue in waiting.items() if queue]
        self._note("F1", self._gap(), self.bound)
        self._pairs(backlogged, service)
        self._since_backlogged(waiting, service)

    def _arrived(self, request: int, service: dict[str, float]) -> None:
        lives = self._world.lives
        ask = lives[request].ask
        whose = self._whose(ask)
        if whose is None:
            return
        self._smallest_weight = min(self._smallest_weight, self._weight(ask))
        self._asked[whose] = self._asked.get(whose, 0.0) + self._of(request, ask.choices * ask.output)
        busy = [life for life in lives.values() if self._whose(life.ask) == whose and life.state in STILL_HERE]
        if len(busy) == 1 and busy[0].state == "queued":
            self._alone[request] = sum(service.values()) - service[whose]

    def service(self, names: Iterable[str]) -> dict[str, float]:
        """Cost of what was processed of each child's requests, over its weight."""
        total = dict.fromkeys(names, 0.0)
        for request, life in self._world.lives.items():
            whose = self._whose(life.ask)
            if whose is not None and life.released_s is not None and not life.refunded:
                total[whose] += self._of(request, life.made)
        return total

    def _of(self, request: int, num_output: int) -> float:
        life = self._world.lives[request]
        cost = self._cost(life.ask.prompt, num_output)
        if life.hit:
            cost -= self._cost(life.ask.prompt, 0) - self._cost(life.ask.prompt - life.ask.cached, 0)
        return cost / self._weight(life.ask)

    def _note(self, name: str, measured: float, bound: float) -> None:
        self.worst[name] = max(self.worst[name], measured / (bound + self.late))

    def _released(self, command: Release, service: dict[str, float]) -> None:
        world = self._world
        ask = world.lives[command.request].ask
        self.longest_prompt_tokens = max(self.longest_prompt_tokens, ask.prompt)
        in_flight = sum(self.size_tokens(life.ask) for life in world.in_flight.values())
        self.most_in_flight_tokens = max(self.most_in_flight_tokens, in_flight)
        whose = self._whose(ask)
        # Below the root others' service is that of a part of the whole: the theorem is about all of it.
        if whose is not None and self._parent is None and command.request in self._alone:
            others = sum(service.values()) - service[whose] - self._alone.pop(command.request)
            num_others = len(world.names) - 1
            # Served by others during the wait = wait x capacity, so this is the theorem without a clock.
            self._note("F4", others, 2 * max(num_others, 1) * self.bound)

    def _count_late(self) -> None:
        late = dict.fromkeys(self._world.names, 0)
        for life in self._world.in_flight.values():
            late[life.ask.tenant] += life.made - life.told
        self.most_late_tokens = max(self.most_late_tokens, *late.values())

    def _pairs(self, backlogged: list[str], service: dict[str, float]) -> None:
        """F2 over every interval in which two tenants are backlogged."""
        now = {(left, right) for left in backlogged for right in backlogged if left < right}
        for pair in [pair for pair in self._ranges if pair not in now]:
            del self._ranges[pair]
        for left, right in sorted(now):
            difference = service[left] - service[right]
            low, high = self._ranges.get((left, right), (difference, difference))
            low, high = min(low, difference), max(high, difference)
            self._ranges[left, right] = (low, high)
            self.largest_pair_difference = max(self.largest_pair_difference, high - low)
            self._note("F2", high - low, 2 * self.bound)

    def _since_backlogged(self, waiting: dict[str, list[int]], service: dict[str, float]) -> None:
        """F3 and F5 over every interval that ends now and in which somebody is backlogged."""
        for name in [name for name in self._since if not waiting[name]]:
            del self._since[name]
        for name in [name for name, queue in waiting.items() if queue]:
            since = self._since.get(name)
            if since is None:
                asked = sum(
                    self._of(request, (ask := self._world.lives[request].ask).choices * ask.output)
                    for request in waiting[name]
                )
                since = self._since[name] = _Since(service, self._asked[name] - asked)
            for other, got in service.items():
                if other != name:
                    ahead = got - service[name]
                    since.least_ahead[other] = min(since.least_ahead.get(other, ahead), ahead)
                    self._note("F3", ahead - since.least_ahead[other], 4 * self.bound)
            given = {other: got - since.service.get(other, 0.0) for other, got in service.items()}
            num_asking = sum(1 for other in service if given[other] or waiting[other])
            share = sum(given.values()) / num_asking
            # Had it asked for less than its share - 5U it would have been let in entirely, and would not wait now.
            self._note("F5", share - (self._asked[name] - since.asked), 5 * self.bound)


class _Since:
    """What was so when a tenant became backlogged."""

    def __init__(self, service: dict[str, float], asked: float) -> None:
        self.service = service
        self.asked = asked
        self.least_ahead: dict[str, float] = {}


STILL_HERE = ("queued", "in flight")
