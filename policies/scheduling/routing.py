"""Which executor a sequence goes to. Knows how much each holds; does not know plans or time."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from numpy.random import default_rng

from policies.scheduling.state import Sequence

if TYPE_CHECKING:
    from policies.scheduling.executor import Executor

Route = Callable[[Iterable["Executor"], Sequence], "Executor | None"]


def least_kv(executors: Iterable["Executor"], sequence: Sequence) -> "Executor | None":
    """Of the executors that could ever hold it, the one with the fewest KV tokens held or promised; ties by id."""
    fitting = [executor for executor in executors if executor.obstacle(sequence) is None]
    return min(fitting, key=lambda executor: (executor.committed_tokens, executor.id), default=None)


def at_random(seed: int) -> Route:
    """Of the executors that could ever hold it, each with the same chance; a sequence draws by its number, so that the
    choice depends on nothing that happened before.
    """
    return partial(_drawn, seed)


def _drawn(seed: int, executors: Iterable["Executor"], sequence: Sequence) -> "Executor | None":
    fitting = [executor for executor in executors if executor.obstacle(sequence) is None]
    return fitting[int(default_rng((seed, sequence.number)).integers(len(fitting)))] if fitting else None


def route(kind: str, seed: int) -> Route:
    """What `routing` asks for; `seed` matters only to a random choice."""
    return at_random(seed) if kind == "random" else least_kv
