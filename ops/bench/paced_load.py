"""Requests of several tenants at a pace, over HTTP: what a benchmark of the whole house is loaded with.

Owns who asks for how much and when, seeded, and the sending of it. Measures nothing: the services record.
"""

import asyncio
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ops.bench.readers import Reader
from policies.document.tenants import digest

MAX_PROMPT_TOKENS = 1400
MAX_OUTPUT_TOKENS = 400
FIRST_TOKEN_ID = 16
"""Below are a vocabulary's special tokens; the demo's is the end of sequence."""
DONE = b"data: [DONE]"


class Tenant(NamedTuple):
    """Who asks: log-normal lengths around their medians."""

    name: str
    tier: str
    share: float
    """Of all requests."""
    prompt_tokens: int
    output_tokens: int
    shared_tokens: int
    """That all its prompts begin with, before the median above."""


TENANTS = (
    Tenant("acme", "paid", 0.2, 100, 60, 64),
    Tenant("globex", "free", 0.5, 200, 80, 128),
    Tenant("initech", "free", 0.3, 450, 50, 0),
)
SPREAD = 0.7
"""Standard deviation of the logarithm of lengths."""


class Ask(NamedTuple):
    """One request."""

    tenant: str
    prompt: list[int]
    max_output_tokens: int
    seed: int


def asks(count: int, *, vocabulary_size: int, seed: int) -> list[Ask]:
    """That many requests; prompts are random tokens behind their tenant's beginning, which is the same for any seed."""
    generator = np.random.default_rng(seed)
    shared = {
        tenant.name: np.random.default_rng(number).integers(FIRST_TOKEN_ID, vocabulary_size, tenant.shared_tokens)
        for number, tenant in enumerate(TENANTS)
    }
    made = []
    for chosen in generator.choice(len(TENANTS), count, p=[tenant.share for tenant in TENANTS]).tolist():
        tenant = TENANTS[chosen]
        lengths = np.exp(SPREAD * generator.standard_normal(2)) * (tenant.prompt_tokens, tenant.output_tokens)
        prompt_tokens = int(np.clip(lengths[0], 1, MAX_PROMPT_TOKENS - tenant.shared_tokens))
        own = generator.integers(FIRST_TOKEN_ID, vocabulary_size, prompt_tokens)
        output_tokens = int(np.clip(lengths[1], 2, MAX_OUTPUT_TOKENS))
        prompt = np.concatenate((shared[tenant.name], own)).tolist()
        made.append(Ask(tenant.name, prompt, output_tokens, int(generator.integers(2**31))))
    return made


def write_tenants(folder: Path) -> None:
    """The tenants' file of a data folder that has none yet."""
    folder.mkdir(parents=True, exist_ok=True)
    tenants = [
        {"name": name, "tier": tier, "keys": [{"id": f"key_{name}", "sha256": digest(secret(name))}]}
        for name, tier, *_ in TENANTS
    ]
    # YAML reads JSON.
    (folder / "tenants.yaml").write_text(json.dumps({"version": 1, "tenants": tenants}))


async def send(port: int, requests: list[Ask], rate: float, *, seed: int) -> float:
    """Send them with exponential gaps, `rate` a second on average (infinite: all at once).

    Returns:
        The seconds until the last has its answer.

    Raises:
        RuntimeError: an answer is not whole: the run is void.
    """
    loop = asyncio.get_running_loop()
    gaps_s = np.random.default_rng(seed).exponential(1 / rate, len(requests))
    began_at_s = loop.time()
    readers = []
    for ask, due_s in zip(requests, np.cumsum(gaps_s).tolist(), strict=True):
        await asyncio.sleep(began_at_s + due_s - loop.time())
        asked = as_http(ask)
        _, reader = await loop.create_connection(lambda asked=asked: Reader(asked), "127.0.0.1", port)  # type: ignore[misc]
        readers.append(reader)
    await asyncio.gather(*(reader.ended for reader in readers))
    took_s = loop.time() - began_at_s
    for reader in readers:
        if DONE not in (answer := b"".join(reader.pieces)):
            raise RuntimeError(f"this run is void: an answer ended with {answer[-300:]!r}")
    return took_s


def secret(tenant: str) -> str:
    """The key of a tenant."""
    return f"fl-bench-{tenant}"


def as_http(ask: Ask) -> bytes:
    """The request as bytes, streamed."""
    body = json.dumps(
        {
            "model": "demo",
            "prompt": ask.prompt,
            "max_tokens": ask.max_output_tokens,
            "seed": ask.seed,
            "stream": True,
            "ignore_eos": True,
        }
    )
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {secret(ask.tenant)}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()
