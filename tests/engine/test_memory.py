"""How much memory an engine may take: of the machine, of a container, and what that makes of a KV pool."""

from pathlib import Path
from typing import Any

import pytest

from engine import memory
from engine.config import ModelConfig, read_config
from engine.interface import EngineError, EngineSettings
from engine.memory import GIB, Free, Pool, free_on_host, size_pool

MIB = 2**20
TOKEN_BYTES = 4096
"""Of the demo checkpoint in float32."""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`host(own path, {group: (max, current, page cache)})`: a machine with 8 GiB available and these groups."""

    def make(own: str, groups: dict[str, tuple[str, int, int]]) -> None:
        (tmp_path / "meminfo").write_text(f"MemTotal: 9999999 kB\nMemAvailable: {8 * MIB} kB\nSwapFree: 0 kB\n")
        (tmp_path / "cgroup").write_text(own)
        for name, (limit, current, cache) in groups.items():
            folder = tmp_path / "groups" / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "memory.max").write_text(f"{limit}\n")
            (folder / "memory.current").write_text(f"{current}\n")
            counts = f"anon 5\nactive_file {cache // 4}\ninactive_file {cache - cache // 4}\nfile 99\n"
            (folder / "memory.stat").write_text(counts)
        for name, path in (("MEMINFO", "meminfo"), ("OWN_CGROUP", "cgroup"), ("CGROUPS", "groups")):
            monkeypatch.setattr(memory, name, tmp_path / path)

    return make


@pytest.mark.parametrize(
    ("own", "groups", "num_bytes"),
    [
        ("0::/\n", {}, 8 * GIB),
        ("4:memory:/old\n0::/\n", {"": ("max", 7 * GIB, 0)}, 8 * GIB),
        ("0::/\n", {"": (str(2 * GIB), GIB, 0)}, GIB),
        ("0::/\n", {"": (str(2 * GIB), GIB, GIB // 2)}, GIB + GIB // 2),
        ("0::/a/b\n", {"a": (str(3 * GIB), 2 * GIB, 0), "a/b": ("max", GIB, 0)}, GIB),
        ("0::/a/b\n", {"a": (str(3 * GIB), GIB, 0), "a/b": (str(GIB), GIB // 4, 0)}, 3 * GIB // 4),
        ("0::/docker/of-the-host\n", {"": (str(2 * GIB), GIB, 0)}, GIB),
        ("0::/\n", {"": (str(2 * GIB), 3 * GIB, 0)}, 0),
        ("0::/\n", {"": (str(99 * GIB), 0, 0)}, 8 * GIB),
        ("4:memory:/old\n", {"old": (str(GIB), 0, 0)}, 8 * GIB),
    ],
)
def test_the_tightest_limit_above_a_process_counts(
    own: str, groups: dict[str, tuple[str, int, int]], num_bytes: int, host: Any
) -> None:
    host(own, groups)
    free = free_on_host()
    assert free.num_bytes == num_bytes
    assert ("memory.max" in free.where) == (num_bytes != 8 * GIB)


def test_a_kernel_that_does_not_say_what_is_available_is_an_error(host: Any, tmp_path: Path) -> None:
    host("", {})
    (tmp_path / "meminfo").write_text("MemTotal: 5 kB\n")
    with pytest.raises(EngineError, match="does not say MemAvailable"):
        free_on_host()


@pytest.fixture(scope="module")
def config(demo: Path) -> ModelConfig:
    return read_config(demo)


def size(config: ModelConfig, free: int, device: str = "cuda", **settings: Any) -> Pool:
    return size_pool(EngineSettings(**settings), config, 16, 4, Free(free, "on it"), device=device)


def test_a_pool_on_a_device_takes_its_part_of_what_is_free(config: ModelConfig) -> None:
    pool = size(config, 10 * GIB)
    assert pool.num_bytes <= 9 * GIB < pool.num_bytes + 16 * TOKEN_BYTES
    assert pool.num_bytes == (pool.num_blocks + 1) * 16 * TOKEN_BYTES
    assert pool.bound == "10.00 GiB are free on it after the weights, of which engine.kv_memory allows 9.00 GiB"
    assert size(config, 10 * GIB, kv_memory=0.5).num_bytes <= 5 * GIB


@pytest.mark.parametrize(
    ("free", "settings", "num_tokens", "bound"),
    [
        (10 * GIB, {}, GIB // TOKEN_BYTES, "1.00 GiB on a CPU"),
        (10 * GIB, {"max_sequence_tokens": 128}, 64 * 128, "64 sequences of full length on a CPU"),
        (100 * MIB, {}, 90 * MIB // TOKEN_BYTES - 16, "100.00 MiB are free on it"),
        (10 * GIB, {"kv_pool_tokens": 2**19}, 2**19, "engine.kv_pool_tokens"),
    ],
)
def test_a_pool_on_a_cpu_has_explicit_bounds(
    free: int, settings: dict[str, Any], num_tokens: int, bound: str, config: ModelConfig
) -> None:
    pool = size(config, free, "cpu", **settings)
    assert pool.num_blocks * 16 == num_tokens
    assert pool.bound.startswith(bound)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "128.00 KiB too much; free some, raise engine.kv_memory"),
        ({"kv_pool_tokens": 2560}, "10.06 MiB for 2560 tokens"),
        ({"kv_pool_tokens": 2560}, "too much; lower engine.kv_pool_tokens (2560) or take a smaller model"),
        ({"kv_pool_tokens": 15}, "engine.kv_pool_tokens: 15 is less than a block, 16"),
    ],
)
def test_what_does_not_fit_says_by_how_much(settings: dict[str, Any], sentence: str, config: ModelConfig) -> None:
    with pytest.raises(EngineError) as raised:
        size(config, 0, **settings)
    assert sentence in str(raised.value)
