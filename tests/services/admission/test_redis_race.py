"""Two processes race for one token bucket in a real Redis server: never over the limit by one token."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.redis

RACER = Path(__file__).with_name("redis_racer.py")
NUM_PROCESSES = 2


def racing(url: str, limit: int, amounts: list[list[int]]) -> list[list[int]]:
    """What each task of each process got."""
    racers = [
        subprocess.Popen(
            [sys.executable, str(RACER), url, str(instance), str(limit), *map(str, mine)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for instance, mine in enumerate(amounts)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    return [json.loads(racer.communicate()[0]) for racer in racers]


@pytest.mark.parametrize(("num_tasks", "limit", "amount"), [(100, 1000, 10), (5, 100, 20)])
def test_tasks_of_two_processes_get_all_of_a_bucket_and_not_one_token_more(
    redis_server: Any, num_tasks: int, limit: int, amount: int
) -> None:
    got = racing(redis_server.url, limit, [[amount] * num_tasks] * NUM_PROCESSES)
    assert sum(map(sum, got)) == limit
    assert num_tasks * NUM_PROCESSES * amount > limit


def test_tasks_that_ask_for_different_amounts_are_refused_only_what_does_not_fit(redis_server: Any) -> None:
    limit = 2000
    amounts = [[1 + (7 * task + 3 * process) % 40 for task in range(100)] for process in range(NUM_PROCESSES)]
    got = racing(redis_server.url, limit, amounts)
    total = sum(map(sum, got))
    refused = [
        want for mine, ours in zip(amounts, got, strict=True) for want, had in zip(mine, ours, strict=True) if not had
    ]
    assert total <= limit < total + min(refused)
