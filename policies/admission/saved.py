"""What of the admission core outlives its process: rows of bytes by name, all of them or those that changed.

Owns which rows there are, what is in them, and which of them an event may change; does not know where they are kept,
nor how a core goes on from them (`recovery.py`). Whatever nobody observes costs nothing: a replay keeps no rows.
"""

from typing import TYPE_CHECKING

import msgspec

from policies.admission.intake import Taken
from policies.admission.ledger import Charge
from policies.admission.limits.items import LimitItem
from policies.admission.nodes import Branch, Node
from policies.admission.order import Order
from policies.admission.shared import SEPARATOR
from policies.commands import Adjust, Command, Queue, Refuse, Release, Resume, Settle, Withdraw
from policies.document.fairness import Level
from policies.events import (
    AdmissionEvent,
    Arrived,
    PolicyApplied,
    PrefixesFound,
    Reserved,
    SchedulerHolds,
    Started,
    TokensProduced,
)

if TYPE_CHECKING:
    from policies.admission.core import AdmissionCore

CORE, PROGRESS, NODE, CHARGE, TAKEN = "core", "progress", "node:", "charge:", "taken:"
MOST_NOTED = 10_000
"""Requests between two takes; more than these are not told one by one."""

Path = tuple[str, ...]
"""Of a node: tenant first."""


class CoreRow(msgspec.Struct, frozen=True):
    """What there is one of."""

    at_unix_s: float
    levels: tuple[Level, ...]
    last_left: str | None
    shifted: float
    """As in `NodeRow`, of all tenants."""
    smallest_weight: float
    bound: float
    """U as it was: counters may be that far apart."""


class NodeRow(msgspec.Struct, frozen=True, array_like=True):
    """A counter of the fairness tree."""

    path: Path
    value: float
    """As it would be had it never been shifted down: a shift changes this of no node."""
    shifted: float
    """By how much its children were shifted down, all together."""
    deficit: float
    """Of deficit round robin."""
    weight: float
    last_left: str | None
    """Its child of the most recently released request."""


class ChargeRow(msgspec.Struct, frozen=True, array_like=True):
    """A request in flight. What changes with every step is in `Progress`."""

    request: int
    tenant: str
    project: str
    key: str
    slo_class: str
    weight: float
    prompt_tokens: int
    num_choices: int
    max_output_tokens: int
    predicted_tokens: int
    size_tokens: int


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """How far a request in flight is."""

    request: int
    output_tokens: int
    cached_tokens: int
    is_cancelled: bool
    attempt: int = 0


class TakenRow(msgspec.Struct, frozen=True, array_like=True):
    """What a request that waits or is in flight has taken of limits."""

    request: int
    items: tuple[LimitItem, ...]
    expected_tokens: int
    most_tokens: int
    num_choices: int


_encoder = msgspec.msgpack.Encoder()


class Saved:
    """The rows of a core. `observe` is to be told of everything that the core is told."""

    def __init__(self, core: "AdmissionCore") -> None:
        self._core = core
        self._unix_minus_core_s = 0.0
        self._now = 0.0
        self._nodes: dict[Path, None] = {}
        """Counters that may have changed."""
        self._requests: dict[int, None] = {}
        """Whose charge or reservation may have begun, changed or ended."""
        self._produced = False
        """Somebody in flight may have been charged."""
        self._all = True

    def observe(self, now: float, event: AdmissionEvent, commands: list[Command]) -> None:
        """The core has answered an event: what may have changed by it."""
        self._now = now
        match event:
            case TokensProduced() | PrefixesFound() | Reserved():
                self._produced = True
            case Arrived():
                self._touch(event.tenant, event.project, event.key)
            case SchedulerHolds():
                self._requests.update((each.request, None) for each in event.requests)
                self._produced = True
            case PolicyApplied():
                self._all = True
            case Started():
                self._unix_minus_core_s = event.wall_s - now
        for command in commands:
            match command:
                case Release() | Resume():
                    self._requests[command.request] = None
                    self._produced = True
                case Queue() | Adjust() | Refuse() | Withdraw():
                    self._requests[command.request] = None
                case Settle():
                    self._requests[command.request] = None
                    self._touch(command.tenant, command.project, command.key)
        if len(self._requests) > MOST_NOTED:
            # A store that does not answer for long costs one large batch, and not the memory for all that ever came.
            self._requests, self._all = {}, True

    def take(self) -> tuple[dict[str, bytes | None], bool]:
        """The rows that changed since the last call, None for what is gone; and whether these are all there are."""
        is_whole, self._all = self._all, False
        rows: dict[str, bytes | None] = self._whole() if is_whole else self._changed()
        self._nodes, self._requests, self._produced = {}, {}, False
        rows[CORE] = self._core_row()
        rows[PROGRESS] = _encoder.encode(
            [
                # As `Progress`: a tuple is made in half the time.
                (charge.request, charge.output_tokens, charge.cached_tokens, charge.cancelled, charge.attempt)
                for charge in self._core.ledger.in_flight.values()
            ]
        )
        return rows, is_whole

    def not_kept(self) -> None:
        """What was taken last is lost: the next has everything."""
        self._all = True

    def _touch(self, tenant: str, project: str, key: str) -> None:
        names = {"tenant": tenant, "project": project, "key": key}
        path = tuple(names[level] for level in self._core.queue.levels)
        for length in range(1, len(path) + 1):
            self._nodes[path[:length]] = None

    def _whole(self) -> dict[str, bytes | None]:
        core = self._core
        rows: dict[str, bytes | None] = {}
        nodes: list[Node] = [*core.queue.accounts.values()]
        for node in nodes:
            path = _path(node)
            rows[_node_name(path)] = _node_row(core.queue.order, node, path)
            if isinstance(node, Branch):
                nodes += node.children.values()
        for request in {**core.ledger.in_flight, **core.intake.taken}:
            rows |= self._request_rows(request)
        return {name: row for name, row in rows.items() if row is not None}

    def _changed(self) -> dict[str, bytes | None]:
        core = self._core
        rows: dict[str, bytes | None] = {}
        for path in self._nodes:
            node = core.queue.root.find(path)
            rows[_node_name(path)] = None if node is None else _node_row(core.queue.order, node, path)
        if self._produced:
            # Counters and progress go together: a token is either in both or in neither.
            leaves = dict.fromkeys(charge.leaf for charge in core.ledger.in_flight.values())
            for node in dict.fromkeys(node for leaf in leaves for node in leaf.path):
                path = _path(node)
                rows[_node_name(path)] = _node_row(core.queue.order, node, path)
        for request in self._requests:
            rows |= self._request_rows(request)
        return rows

    def _request_rows(self, request: int) -> dict[str, bytes | None]:
        charge = self._core.ledger.in_flight.get(request)
        taken = self._core.intake.taken.get(request)
        return {
            f"{CHARGE}{request}": None if charge is None else _charge_row(charge),
            f"{TAKEN}{request}": None if taken is None else _taken_row(taken),
        }

    def _core_row(self) -> bytes:
        queue = self._core.queue
        return _encoder.encode(
            CoreRow(
                at_unix_s=self._now + self._unix_minus_core_s,
                levels=queue.levels,
                last_left=None if queue.last_left is None else queue.last_left.name,
                shifted=queue.root.shifted,
                smallest_weight=queue.smallest_weight,
                bound=self._core.bound * queue.smallest_weight,
            )
        )


def _path(node: Node) -> Path:
    return tuple(each.name for each in reversed(node.path))


def _node_name(path: Path) -> str:
    return NODE + SEPARATOR.join(path)


def _node_row(order: Order, node: Node, path: Path) -> bytes:
    shifted, last_left = (node.shifted, node.last_left) if isinstance(node, Branch) else (0.0, None)
    last_name = None if last_left is None else last_left.name
    value, deficit = node.counter + node.above.shifted, order.deficit(node)
    return _encoder.encode(NodeRow(path, value, shifted, deficit, node.weight, last_name))


def _charge_row(charge: Charge) -> bytes:
    return _encoder.encode(
        ChargeRow(
            charge.request,
            charge.tenant,
            charge.project,
            charge.key,
            charge.slo_class,
            charge.weight,
            charge.prompt_tokens,
            charge.num_choices,
            charge.max_output_tokens,
            charge.predicted_tokens,
            charge.place.size_tokens,
        )
    )


def _taken_row(taken: Taken) -> bytes:
    row = TakenRow(taken.request, taken.items, taken.expected_tokens, taken.most_tokens, taken.num_choices)
    return _encoder.encode(row)
