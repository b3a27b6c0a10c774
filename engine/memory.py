"""How much memory an engine may take, and how large a KV pool that makes. Torch-free.

Knows bytes and bounds; allocates nothing. What is free on a CUDA device, its caller says.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from engine.config import ModelConfig
from engine.interface import EngineError, EngineSettings

GIB = 2**30
MEMINFO = Path("/proc/meminfo")
OWN_CGROUP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
SCRATCH_BLOCKS = 1
"""Block 0 takes the writes of padding and of sequences that are gone; the scheduler's block b is the cache's b + 1."""
CPU_POOL_BYTES = GIB
CPU_POOL_SEQUENCES = 64
"""On a CPU the pool is not larger than this many sequences of full length need."""


class Free(NamedTuple):
    """Memory that may be taken."""

    num_bytes: int
    where: str
    """As in "4 GiB are free ...": on which device, or within which limit."""


class Pool(NamedTuple):
    """The KV memory of an engine."""

    num_blocks: int
    """Beside the scratch blocks."""
    num_bytes: int
    """With the scratch blocks."""
    bound: str
    """What kept it from being larger."""


def free_on_host() -> Free:
    """The least of what the machine has available and what the limits of this process's control groups leave.

    Available, not free: what the page cache holds is given back when asked for. Limits are those of cgroup v2
    (memory.max of the process's group and of all above it), as containers have them.

    Raises:
        EngineError: the kernel does not say how much is available.
    """
    available = re.search(r"^MemAvailable:\s+(\d+) kB$", MEMINFO.read_text(), re.MULTILINE)
    if available is None:
        raise EngineError(f"{MEMINFO}: does not say MemAvailable")
    return min([Free(int(available[1]) * 1024, "on this machine"), *_within_limits()])


def _within_limits() -> Iterator[Free]:
    own = re.search(r"^0::(/.*)$", OWN_CGROUP.read_text(), re.MULTILINE) if OWN_CGROUP.exists() else None
    if own is None:
        return
    group = CGROUPS / own[1].strip("/")
    # In a container the group's path may be the host's, of which only the root is mounted here.
    for folder in (group, *group.parents):
        if folder.is_relative_to(CGROUPS) and (folder / "memory.max").exists():
            limit = (folder / "memory.max").read_text().strip()
            if limit != "max":
                left = int(limit) - int((folder / "memory.current").read_text()) + _page_cache_bytes(folder)
                yield Free(max(left, 0), f"within the {amount(int(limit))} of {folder / 'memory.max'}")


def _page_cache_bytes(folder: Path) -> int:
    counts = re.findall(r"^(?:active|inactive)_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    return sum(map(int, counts))


def check_weights(folder: Path, num_bytes: int, dtype: str, free: Free) -> None:
    """Refuse weights that are larger than what is free.

    Raises:
        EngineError: says by how much.
    """
    if num_bytes > free.num_bytes:
        raise EngineError(
            f"{folder}: its weights need {amount(num_bytes)} as {dtype} and {amount(free.num_bytes)} are free "
            f"{free.where}: {amount(num_bytes - free.num_bytes)} too much"
        )


def size_pool(
    settings: EngineSettings, config: ModelConfig, block_tokens: int, number_bytes: int, free: Free, *, device: str
) -> Pool:
    """The pool that the settings ask for, or the largest that fits: `kv_memory` of what is free after the weights.

    `number_bytes`: of one key or value. A pool in host memory is also bounded by what serving can use at once.

    Raises:
        EngineError: the memory does not hold what is asked for, or not even one block; says by how much.
    """
    token_bytes = config.kv_bytes_per_token * number_bytes
    block_bytes = token_bytes * block_tokens
    usable = int(free.num_bytes * settings.kv_memory)
    share = f"{amount(free.num_bytes)} are free {free.where} after the weights, of which engine.kv_memory allows "
    share += amount(usable)
    if settings.kv_pool_tokens:
        if settings.kv_pool_tokens < block_tokens:
            raise EngineError(f"engine.kv_pool_tokens: {settings.kv_pool_tokens} is less than a block, {block_tokens}")
        num_blocks, bound = settings.kv_pool_tokens // block_tokens, "engine.kv_pool_tokens"
        remedy = f"lower engine.kv_pool_tokens ({settings.kv_pool_tokens})"
    else:
        bounds = [(usable // block_bytes - SCRATCH_BLOCKS, share)]
        if device == "cpu":
            length = settings.max_sequence_tokens or config.max_positions
            unless = "on a CPU, unless engine.kv_pool_tokens says otherwise"
            bounds += [
                (CPU_POOL_BYTES // block_bytes, f"{amount(CPU_POOL_BYTES)} {unless}"),
                (
                    CPU_POOL_SEQUENCES * length // block_tokens,
                    f"{CPU_POOL_SEQUENCES} sequences of full length {unless}",
                ),
            ]
        num_blocks, bound = min(bounds)
        num_blocks = max(num_blocks, 1)
        remedy = "free some, raise engine.kv_memory"
    needed = (num_blocks + SCRATCH_BLOCKS) * block_bytes
    if needed > usable:
        raise EngineError(
            f"the KV pool needs {amount(needed)} for {num_blocks * block_tokens} tokens, and {share}: "
            f"{amount(needed - usable)} too much; {remedy} or take a smaller model"
        )
    return Pool(num_blocks, needed, bound)


def amount(num_bytes: int) -> str:
    """In words, in the unit that says most."""
    for size, unit in ((GIB, "GiB"), (2**20, "MiB")):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes / 2**10:.2f} KiB"
