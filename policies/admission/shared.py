"""What is heard of the other replicas and of the store that all share.

What others have charged is taken over into this one's fairness tree once per exchange. With at most D cost units
charged to a tenant at one replica in between, the bounds of the theorems grow by 2 D for each other replica (fairness
specification, F12). Knows names and sums; does not know where they come from.
"""

from policies.admission.fairness import FairQueue
from policies.admission.intake import Intake
from policies.events import CountersShared, StoreReach

SEPARATOR = "\x1f"
"""Between the names of a node's path: no name has it."""


def hear(event: CountersShared | StoreReach, queue: FairQueue, intake: Intake, now: float) -> None:
    """The event's consequences."""
    match event:
        case StoreReach():
            intake.reach = event
        case CountersShared():
            _take_over(queue, event, now)


def path_of(name: str) -> tuple[str, ...]:
    """The path of a node by its name in `CountersShared`; empty: the root's."""
    return tuple(name.split(SEPARATOR)) if name else ()


def _take_over(queue: FairQueue, event: CountersShared, now: float) -> None:
    unknown: dict[tuple[str, ...], float] = {}
    for name, amount in event.charged.items():
        path = path_of(name)
        node = queue.root.find(path)
        if node is None:
            unknown[path] = amount
        else:
            queue.give(node, amount)
    floors = ((queue.root.find(path_of(name)), floor) for name, floor in event.floors.items())
    queue.floors = {branch: floor for branch, floor in floors if branch is not None}
    queue.num_replicas, queue.staleness = event.num_replicas, event.staleness
    for path in unknown:
        if len(path) == len(queue.levels):
            _remember(queue, path, unknown, now)


def _remember(queue: FairQueue, path: tuple[str, ...], unknown: dict[tuple[str, ...], float], now: float) -> None:
    """A leaf that only others know: kept unless a lift would restore it anyway."""
    new = [depth for depth in range(1, len(path) + 1) if queue.root.find(path[:depth]) is None]
    leaf = queue.leaf(**dict(zip(queue.levels, path, strict=True)))
    for node, depth in zip(leaf.path, range(len(path), 0, -1), strict=True):
        if depth in new:
            queue.give(node, unknown.get(path[:depth], 0.0))
    queue.retire(leaf, now)
