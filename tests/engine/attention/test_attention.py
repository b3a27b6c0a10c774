"""Backends are chosen by what they need, and agree with plain attention over the whole context."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import native
from engine.attention.interface import Rows
from engine.config import ModelConfig, Rope
from engine.interface import EngineError, EngineSettings

CONTEXTS, LENGTHS = (1, 30, 100, 7, 90), (1, 1, 1, 7, 33)


def model(windows: tuple[int | None, ...] = (None, 20), head_dim: int = 16) -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocabulary_size=10,
        hidden_size=64,
        intermediate_size=64,
        num_layers=2,
        num_heads=6,
        num_kv_heads=2,
        head_dim=head_dim,
        max_positions=512,
        norm_eps=1e-6,
        tied_embeddings=False,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows=windows,
        rope=Rope(),
        dtype="float32",
    )


def filled_cache(
    block_tokens: int, device: str = "cpu", dtype: str = "float32", head_dim: int = 16
) -> tuple[Any, Rows]:
    """Random keys and values everywhere, and rows whose blocks lie scattered over the pool."""
    import torch

    from engine.kv_cache import KvCache

    torch.manual_seed(0)
    cache = KvCache(model(head_dim=head_dim), 60, block_tokens, getattr(torch, dtype), torch.device(device))
    for pool in (*cache.keys, *cache.values):
        pool.normal_()
    counts = [-(-context // block_tokens) for context in CONTEXTS]
    free = np.random.default_rng(3).permutation(np.arange(1, 61))
    tables = np.zeros((len(CONTEXTS), max(counts)), np.int64)
    for row, count in enumerate(counts):
        tables[row, :count], free = free[:count], free[count:]
    return cache, Rows(3, np.array(LENGTHS), np.array(CONTEXTS), tables)


def plain(cache: Any, rows: Rows, query: Any, layer: int) -> Any:
    """Scores of every query with every key it may see, one head at a time."""
    import torch

    out, offset = torch.empty_like(query), 0
    window = model().windows[layer] or 10**6
    for row, (length, context) in enumerate(zip(rows.num_tokens.tolist(), rows.contexts.tolist(), strict=True)):
        keys, values = (pool[layer][rows.tables[row]].flatten(0, 1)[:context] for pool in (cache.keys, cache.values))
        for index in range(length):
            position = context - length + index
            seen = slice(max(0, position - window + 1), position + 1)
            for head in range(6):
                scores = keys[seen, head // 3] @ query[offset + index, head] / query.shape[-1] ** 0.5
                out[offset + index, head] = scores.softmax(0) @ values[seen, head // 3]
        offset += length
    return out


@pytest.mark.parametrize("block_tokens", [16, 64])
@pytest.mark.parametrize("layer", [0, 1])
def test_gathered_attention_is_plain_attention(block_tokens: int, layer: int) -> None:
    import torch

    from engine.attention.gather import GatherAttention

    cache, rows = filled_cache(block_tokens)
    query = torch.randn(sum(LENGTHS), 6, 16)
    attended = GatherAttention("cpu_gather", model(), cache).plan(rows).attend(layer, query)
    assert (attended - plain(cache, rows, query, layer)).abs().max() < 2e-6


def test_long_chunks_are_taken_in_pieces_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from engine.attention import gather

    monkeypatch.setattr(gather, "PIECE", 5)
    cache, rows = filled_cache(16)
    query = torch.randn(sum(LENGTHS), 6, 16)
    for layer in (0, 1):
        attended = gather.GatherAttention("cpu_gather", model(), cache).plan(rows).attend(layer, query)
        assert (attended - plain(cache, rows, query, layer)).abs().max() < 2e-6


@pytest.mark.parametrize("block_tokens", [16, 64])
@pytest.mark.parametrize("window", [None, 9, 300])
def test_a_span_holds_all_a_query_sees_and_there_are_few(window: int | None, block_tokens: int) -> None:
    from engine.attention.gather import PIECE, runs, spans

    positions = np.arange(3000)
    found = spans(positions, window, block_tokens)
    assert (found.firsts <= np.maximum(positions - (window or 10**6) + 1, 0)).all()
    assert (found.firsts + found.widths > positions).all()
    assert (found.widths % block_tokens == 0).all()
    assert (found.firsts % block_tokens == 0).all()
    assert len(runs(found.firsts, found.widths)) <= (12 if window is None else 6 * 3000 / PIECE)
    needed = positions - found.firsts + 1
    assert (found.widths <= np.maximum(1.5 * needed + block_tokens, 64)).all()


def test_a_run_is_where_nothing_changes() -> None:
    from engine.attention.gather import runs

    assert runs(np.array([1, 1, 2, 2, 2, 3]), np.array([0, 0, 0, 5, 5, 5])) == [
        slice(0, 2),
        slice(2, 3),
        slice(3, 5),
        slice(5, 6),
    ]
    assert runs(np.zeros(0, np.int64)) == []


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "changes", "name", "reasons"),
    [
        ("cpu", "float32", 64, {}, "cpu_paged", {"xformers_splitk": "cuda device", "sdpa_gather": "cuda device"}),
        ("cpu", "float16", 64, {}, "cpu_gather", {"cpu_paged": "needs float32 or bfloat16, this is float16"}),
        ("cpu", "float32", 8, {}, "cpu_gather", {"cpu_paged": "a multiple of 16, this model has 8"}),
        ("cpu", "float32", 64, {"kv_block_tokens": 8}, "cpu_gather", {"cpu_paged": "a multiple of 16, this is 8"}),
        ("cuda", "float16", 64, {"attention": "varlen_paged"}, "varlen_paged", {"sdpa_gather": "name varlen_paged"}),
        ("cuda", "bfloat16", 96, {}, "varlen_paged", {"xformers_splitk": "this model has 96"}),
        ("cuda", "bfloat16", 64, {}, "xformers_splitk", {"sdpa_gather": "comes first", "cpu_gather": "cpu device"}),
        ("cuda", "float32", 64, {}, "sdpa_gather", {"xformers_splitk": "needs bfloat16 or float16, this is float32"}),
        ("cuda", "float16", 80, {}, "sdpa_gather", {"xformers_splitk": "this model has 80"}),
        ("cuda", "float16", 64, {"kv_block_tokens": 16}, "sdpa_gather", {"xformers_splitk": "a multiple of 64"}),
        ("cuda", "float16", 64, {"attention": "sdpa_gather"}, "sdpa_gather", {"xformers_splitk": "name sdpa_gather"}),
    ],
)
def test_the_first_backend_whose_needs_are_met_is_chosen(  # noqa: PLR0917  columns of the table
    device: str,
    dtype: str,
    head_dim: int,
    changes: dict[str, Any],
    name: str,
    reasons: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    from engine.attention.choice import choose

    monkeypatch.setattr(native, "locate", lambda: native.Located(Path("there.so"), "v", ""))
    choice = choose(EngineSettings(**changes), model(head_dim=head_dim), torch.device(device), getattr(torch, dtype))
    assert choice.name == name
    sizes = {"xformers_splitk": 64, "varlen_paged": 256}
    assert choice.block_tokens == sizes.get(name, changes.get("kv_block_tokens", 16))
    assert set(choice.against) == {"xformers_splitk", "varlen_paged", "cpu_paged", "cpu_gather", "sdpa_gather"} - {name}
    assert all(reason in choice.against[other] for other, reason in reasons.items())


def test_without_the_library_of_kernels_a_cpu_gathers_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from engine.attention.choice import choose

    monkeypatch.setattr(native, "locate", lambda: native.Located(None, "", "its library is not built"))
    choice = choose(EngineSettings(), model(), torch.device("cpu"), torch.float32)
    assert (choice.name, choice.against["cpu_paged"]) == ("cpu_gather", "its library is not built")


def test_a_backend_that_cannot_run_is_refused_with_one_that_can() -> None:
    import torch

    from engine.attention.choice import choose

    settings = EngineSettings(attention="xformers_splitk", kv_block_tokens=32)
    with pytest.raises(
        EngineError, match="it needs kv_block_tokens to be a multiple of 64, this is 32; here you can use"
    ):
        choose(settings, model(), torch.device("cuda"), torch.bfloat16)
