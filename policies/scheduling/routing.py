"""Which executor a sequence goes to. Knows how much each holds; does not know plans or time."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from policies.scheduling.state import Sequence

if TYPE_CHECKING:
    from policies.scheduling.executor import Executor

Route = Callable[[Iterable["Executor"], Sequence], "Executor | None"]


def least_kv(executors: Iterable["Executor"], sequence: Sequence) -> "Executor | None":
    """Of the executors that could ever hold it, the one with the fewest KV tokens held or promised; ties by id."""
    fitting = [executor for executor in executors if executor.obstacle(sequence) is None]
    return min(fitting, key=lambda executor: (executor.committed_tokens, executor.id), default=None)


ROUTES: dict[str, Route] = {"least_kv": least_kv}
