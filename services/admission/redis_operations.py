"""What a replica asks of the shared store, one operation at a time, and how a batch of them is put for its script.

Knows the scripts' form and the names of keys; does not know connections, nor what becomes of an answer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from policies.admission.limits.algorithms import NS_PER_S
from policies.admission.limits.items import LimitItem
from services.admission.redis_limits import row
from services.admission.store import Batch
from services.usage_rows import KEEP_DAYS

_GONE = "gone"
MS_PER_DAY = 86_400_000

_encoder = msgspec.msgpack.Encoder()
_items = msgspec.json.Encoder()
_read_items = msgspec.json.Decoder(tuple[LimitItem, ...])
_read_held = msgspec.json.Decoder(list[tuple[LimitItem, int]])


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instance's part of the store is. All keys share one hash tag, so that a cluster keeps them together."""

    deployment: str
    instance: str

    def key(self, name: str) -> str:
        """One of the deployment."""
        return f"fairlead:{{{self.deployment}}}:{name}"

    @property
    def rows(self) -> str:
        """What this instance keeps of its core."""
        return self.key(f"rows:{self.instance}")

    @property
    def reserved(self) -> str:
        """What its requests have reserved."""
        return self.key(f"reserved:{self.instance}")

    def limit(self, item: LimitItem) -> str:
        """What is taken of a limit."""
        return self.key(f"limit:{item.name}")

    def usage(self, day: str) -> str:
        """What was used on a day."""
        return self.key(f"usage:{day}")


class Arguments:
    """Keys and values of one call of the script, which names them by their numbers."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.values: list[bytes] = []
        self._keys: dict[str, int] = {}
        for key in ("leases", f"last:{place.instance}", "clock"):
            self.key(place.key(key))
        self.key(place.reserved)

    def key(self, key: str) -> int:
        """Where the script finds a key."""
        return self._keys.setdefault(key, len(self._keys) + 1)

    def value(self, value: bytes) -> int:
        """Where it finds bytes, which its msgpack cannot read. The first argument is the batch."""
        self.values.append(value)
        return len(self.values) + 1

    @property
    def keys(self) -> list[str]:
        """In the order of their numbers."""
        return list(self._keys)


@dataclass(slots=True, eq=False)
class ReserveOperation:
    """Take all items or nothing."""

    request: int
    items: tuple[LimitItem, ...]
    was_taken: bool | None = None
    """How this process has decided it meanwhile, because the store did not answer; None: it has not."""

    def encode(self, arguments: Arguments) -> list[Any]:
        """As the script reads it."""
        rows = [row(arguments.key(arguments.place.limit(item)), item) for item in self.items]
        return ["reserve", str(self.request), rows, _items.encode(self.items).decode()]


@dataclass(slots=True, eq=False)
class AdjustOperation:
    """These items of a request are really so much more (or less)."""

    request: str
    changes: list[tuple[LimitItem, int]]
    reserved: tuple[LimitItem, ...] | None = ()
    """All that the request has now, as long as no row says so; empty: one does; None: it has nothing any more."""

    def encode(self, arguments: Arguments) -> list[Any]:
        """As `ReserveOperation.encode`."""
        return [
            "adjust",
            self.request,
            [row(arguments.key(arguments.place.limit(item)), item, change) for item, change in self.changes],
            _GONE if self.reserved is None else _items.encode(self.reserved).decode() if self.reserved else "",
        ]


@dataclass(slots=True, eq=False)
class HoldOperation:
    """This replica holds exactly so many units of these gauges."""

    held: list[tuple[LimitItem, int]]

    def encode(self, arguments: Arguments) -> list[Any]:
        """As `ReserveOperation.encode`."""
        return ["hold", [[arguments.key(arguments.place.limit(item)), units] for item, units in self.held]]


@dataclass(slots=True, eq=False)
class KeepOperation:
    """Keep a batch of rows and usage."""

    batch: Batch
    held: list[tuple[LimitItem, int]]
    """What this process holds of gauges, so that the next one of the instance holds it too."""
    in_rows: list[int]
    """Requests whose reservations are in the rows from now on, if they have any."""

    def encode(self, arguments: Arguments) -> list[Any]:
        """As `ReserveOperation.encode`."""
        place = arguments.place
        kept = [(name, arguments.value(value)) for name, value in self.batch.rows.items() if value is not None]
        asked = {
            "rows": arguments.key(place.rows),
            "reserved": arguments.key(place.reserved),
            "is_whole": self.batch.is_whole,
            "kept": kept,
            "gone": [name for name, value in self.batch.rows.items() if value is None],
            "in_rows": [str(request) for request in self.in_rows],
            "held": _items.encode(self.held).decode(),
            # A start of the scheduler is a number too long for the script.
            "settled": f"{self.batch.scheduler_epoch} {self.batch.ends_number}",
            "usage": [
                [arguments.key(place.usage(day)), usage_field(tenant, counted), amount]
                for (day, tenant, counted), amount in self.batch.usage.items()
            ],
            "usage_ms": KEEP_DAYS * MS_PER_DAY,
        }
        return ["keep", asked]


@dataclass(slots=True, eq=False)
class ExchangeOperation:
    """Tell what this replica has charged and ask what others have."""

    since: int
    """The number of the last change that it has heard of."""
    nodes: list[tuple[str, float, float]]
    floors: list[tuple[str, float]]
    fresh_ms: int
    """How long another's floors are believed."""

    def encode(self, arguments: Arguments) -> list[Any]:
        """As `ReserveOperation.encode`."""
        names = [arguments.key(arguments.place.key(name)) for name in ("counters", "changes", "floors")]
        asked = {"since": self.since, "nodes": self.nodes, "floors": self.floors, "fresh_ms": self.fresh_ms}
        return ["exchange", names, asked]


Operation = ReserveOperation | AdjustOperation | HoldOperation | KeepOperation | ExchangeOperation


class BatchAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What the script says of a batch."""

    had_lease: bool
    """False: what this replica held of gauges counts no more."""
    now: tuple[int, int]
    """Seconds and nanoseconds since 1970, by the store's clock."""
    num_replicas: int
    """That have a lease."""
    answers: list[Any]
    """Of each operation; none: nothing was done, because the store has lost what it knew."""

    @property
    def now_ns(self) -> int:
        """Nanoseconds since 1970, by the store's clock."""
        return self.now[0] * NS_PER_S + self.now[1]


read_answer = msgspec.msgpack.Decoder(BatchAnswer).decode


class Encoded(NamedTuple):
    """One call of the script; called again, it does nothing more and answers the same."""

    keys: list[str]
    values: list[bytes]


class Session(NamedTuple):
    """One process of an instance."""

    place: Place
    name: str
    """No earlier process of the instance had it."""
    lease_s: float


def encode(session: Session, number: int, operations: Iterable[Operation], after: int | None) -> Encoded:
    """A batch of operations, done at once or not at all; `number` tells it from others of the session. It is not done
    by a store that knows another one as the last than `after`; None: whatever it knows.
    """
    place = session.place
    arguments = Arguments(place)
    head = {
        "replica": f"{place.instance} {session.name}",
        "instance": place.instance,
        "batch": f"{session.name} {number}",
        "after": "" if after is None else f"{session.name} {after}",
        "lease_ms": round(1000 * session.lease_s),
        "operations": [operation.encode(arguments) for operation in operations],
    }
    return Encoded(arguments.keys, [_encoder.encode(head), *arguments.values])


def usage_field(tenant: str, counted: str) -> str:
    """One count of a tenant among a day's; names may hold any character."""
    return _items.encode([tenant, counted]).decode()


def read_usage_field(name: bytes) -> tuple[str, str]:
    """Tenant and what is counted."""
    tenant, counted = msgspec.json.decode(name, type=tuple[str, str])
    return tenant, counted


def read_items(value: bytes) -> tuple[LimitItem, ...]:
    """What a request had reserved when its process ended."""
    return _read_items.decode(value)


def read_held(value: bytes) -> list[tuple[LimitItem, int]]:
    """What an earlier process held of gauges."""
    return _read_held.decode(value)
