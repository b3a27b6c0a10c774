"""One admission process of a race for a token bucket: starts when told to on stdin, prints what it got.

Arguments: the store's address, the instance, the limit, and the amounts that its tasks ask for, one each.
"""

import asyncio
import json
import sys
from typing import Any

from policies.admission.limits.items import LimitItem
from policies.events import Reserved
from services.admission.redis_operations import ExchangeOperation
from services.admission.redis_store import RedisStore
from services.settings import Deployment
from services.troubles import Troubles


class NobodyElse:
    """Shares no counters."""

    def changed(self, names: Any) -> None:
        """Nothing is shared."""

    def ask(self, fresh_ms: int) -> ExchangeOperation:
        """Nothing to tell."""
        return ExchangeOperation(0, [], [], fresh_ms)

    def told(self, answer: Any, num_replicas: int) -> None:
        """Nothing matters."""

    def forgotten(self) -> None:
        """Nothing is."""


async def race(url: str, instance: str, limit: int, amounts: list[int]) -> list[int]:
    """What each task got."""
    answers: dict[int, asyncio.Future[Any]] = {}
    store = RedisStore(
        Deployment(store=url),
        instance,
        lambda event: answers[event.request].set_result(event),
        NobodyElse(),
        Troubles(),
    )
    await store.open()

    async def one(request: int, amount: int) -> int:
        answers[request] = asyncio.get_running_loop().create_future()
        # Tasks take turns, so that the two processes' batches do too.
        for _ in range(request % 7):
            await asyncio.sleep(0)
        store.reserve(
            request, (LimitItem("tenant", "acme", "total_tokens", "token_bucket", amount, limit, 86400, limit),)
        )
        return amount if isinstance(await answers[request], Reserved) else 0

    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    got = await asyncio.gather(*(one(request, amount) for request, amount in enumerate(amounts)))
    await store.close()
    return got


if __name__ == "__main__":
    address, name, limit, *amounts = sys.argv[1:]
    print(json.dumps(asyncio.run(race(address, name, int(limit), [int(amount) for amount in amounts]))))
