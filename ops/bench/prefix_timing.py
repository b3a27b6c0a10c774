"""Whether a clock tells a tenant that another has asked what it asks: times to the first token, of prompts that another
tenant asked before and of prompts that nobody did.

All four services with the demo model, one request at a time. The figure of a round is the median of its requests.
Beside it stands what a tenant's own second request takes against its first: what there is to hide.
"""

import argparse
import contextlib
import http.client
import json
import statistics
import tempfile
import time
from itertools import count
from pathlib import Path

import numpy as np

from ops.bench.deployed import start
from ops.bench.harness import Row, at_most, interleave, within
from policies.document.tenants import digest
from services.settings import Deployment, HttpSettings

PROMPT_TOKENS = 1024
FIRST_TOKEN_ID, LAST_TOKEN_ID = 16, 3000
NUM_PAIRS = 8
"""Requests of a round, of each kind in turn."""
KEYS = {"acme": "fl-bench-acme", "globex": "fl-bench-globex"}
DATA = b"data: "


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure; figures are milliseconds, and the ratios are what a tenant could tell."""
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as folder, contextlib.ExitStack() as stack:
        deployment = Deployment(data=str(Path(folder) / "data"), http=HttpSettings(port=0))
        _write_tenants(Path(deployment.data))
        asking = Asking(start(deployment, Path(folder), stack)[0])
        others = interleave(asking.after_another, asking.after_nobody, rounds=arguments.rounds)
        own = interleave(asking.again, asking.after_nobody, rounds=arguments.rounds)
    return [
        within("ttft_of_what_another_tenant_asked", "ms", others, must=0.05, stretch=0.01),
        at_most("ttft_of_what_the_tenant_itself_asked", "ms", own, must=0.8, stretch=0.5),
    ]


class Asking:
    """Prompts that were never asked, and those that were."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._number = count()

    def after_another(self) -> float:
        """Acme asks, then globex the same; the time of the latter."""
        return self._median("acme", "globex")

    def after_nobody(self) -> float:
        """Acme asks something else before, so that the caches are as full."""
        times_ms = []
        for _ in range(NUM_PAIRS):
            self._ask("acme", next(self._number))
            times_ms.append(self._ask("globex", next(self._number)))
        return statistics.median(times_ms)

    def again(self) -> float:
        """Globex asks the same twice."""
        return self._median("globex", "globex")

    def _median(self, first: str, second: str) -> float:
        times_ms = []
        for _ in range(NUM_PAIRS):
            number = next(self._number)
            self._ask(first, number)
            times_ms.append(self._ask(second, number))
        return statistics.median(times_ms)

    def _ask(self, tenant: str, number: int) -> float:
        """Milliseconds to the first token of the prompt of this number."""
        prompt = np.random.default_rng(number).integers(FIRST_TOKEN_ID, LAST_TOKEN_ID, PROMPT_TOKENS).tolist()
        body = json.dumps(
            {"model": "demo", "prompt": prompt, "max_tokens": 1, "seed": 1, "stream": True, "ignore_eos": True}
        )
        headers = {"authorization": f"Bearer {KEYS[tenant]}", "content-type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        connection.connect()
        begun = time.perf_counter()
        connection.request("POST", "/v1/completions", body, headers)
        answer = connection.getresponse()
        line = answer.readline()
        took_ms = (time.perf_counter() - begun) * 1e3
        said = line + answer.read()
        connection.close()
        if answer.status != 200 or DATA not in said:
            raise RuntimeError(f"this run is void: {answer.status} {said[:300]!r}")
        return took_ms


def _write_tenants(data: Path) -> None:
    data.mkdir(parents=True)
    tenants = [{"name": name, "keys": [{"id": f"key_{name}", "sha256": digest(key)}]} for name, key in KEYS.items()]
    (data / "tenants.yaml").write_text(json.dumps({"version": 1, "tenants": tenants}))
