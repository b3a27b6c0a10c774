"""Runs xformers' paged decode kernel on a CPU, under Triton's interpreter, through our backend.

A program of its own: the interpreter is chosen before Triton is imported. Prints {case: largest difference to gathered
attention in float32} as JSON.
"""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from xformers.ops.fmha import triton_splitk

from engine.attention import xformers_splitk
from engine.attention.gather import GatherAttention
from engine.attention.interface import Rows
from engine.attention.xformers_splitk import XformersAttention
from engine.config import ModelConfig, Rope
from engine.kv_cache import KvCache

NUM_BLOCKS = 60


class DenseChunks(triton_splitk.FwOp):  # type: ignore[misc]
    """In place of the flash kernel, which no CPU has: the same call, the mask written out."""

    @classmethod
    def not_supported_reasons(cls, d: Any) -> list[str]:
        return []

    @classmethod
    def apply(cls, inp: Any, needs_gradient: bool) -> tuple[torch.Tensor, None]:
        bias = inp.attn_bias
        assert bias.q_seqinfo.seqstart.tolist() == bias.q_seqinfo.seqstart_py
        assert bias.k_seqinfo.seqstart.tolist() == bias.k_seqinfo.seqstart_py
        mask = bias.materialize((inp.query.shape[1], inp.key.shape[1]))
        query, key, value = (x[0].float().permute(1, 2, 0, 3) for x in (inp.query, inp.key, inp.value))
        scores = query @ key.transpose(-1, -2) * inp.scale_float + mask
        return (scores.softmax(-1) @ value).permute(2, 0, 1, 3)[None].to(inp.query.dtype), None


def model(head_dim: int, num_heads: int, num_kv_heads: int, window: int | None) -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocabulary_size=10,
        hidden_size=64,
        intermediate_size=64,
        num_layers=1,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_positions=4096,
        norm_eps=1e-6,
        tied_embeddings=False,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows=(window,),
        rope=Rope(),
        dtype="float16",
    )


def rows_of(contexts: tuple[int, ...], num_tokens: tuple[int, ...], block_tokens: int, seed: int) -> Rows:
    """Blocks scattered over the pool."""
    counts = [-(-context // block_tokens) for context in contexts]
    free = np.random.default_rng(seed).permutation(np.arange(1, NUM_BLOCKS + 1))
    tables = np.zeros((len(contexts), max(counts)), np.int64)
    for row, count in enumerate(counts):
        tables[row, :count], free = free[:count], free[count:]
    return Rows(sum(n == 1 for n in num_tokens), np.array(num_tokens), np.array(contexts), tables)


def difference(config: ModelConfig, block_tokens: int, *steps: Rows) -> float:
    """Of each step, run one after the other by one backend."""
    torch.manual_seed(1)
    device = torch.device("cpu")
    half = KvCache(config, NUM_BLOCKS, block_tokens, torch.float16, device)
    single = KvCache(config, NUM_BLOCKS, block_tokens, torch.float32, device)
    for ours, theirs in zip((*half.keys, *half.values), (*single.keys, *single.values), strict=True):
        theirs.copy_(ours.normal_(std=0.5))
    backend, oracle = XformersAttention(config, half), GatherAttention("cpu_gather", config, single)
    largest = 0.0
    for rows in steps:
        query = torch.randn(int(rows.num_tokens.sum()), config.num_heads, config.head_dim).half()
        attended = backend.plan(rows).attend(0, query).float()
        largest = max(largest, float((attended - oracle.plan(rows).attend(0, query.float())).abs().max()))
    return largest


def decodes(*contexts: int, block_tokens: int = 64, seed: int = 0) -> Rows:
    return rows_of(contexts, (1,) * len(contexts), block_tokens, seed)


def unsplit() -> float:
    enough = xformers_splitk.ENOUGH_PROGRAMS
    xformers_splitk.ENOUGH_PROGRAMS = 1
    try:
        return difference(model(16, 6, 2, 90), 64, decodes(1, 64, 65, 700))
    finally:
        xformers_splitk.ENOUGH_PROGRAMS = enough


CASES: dict[str, Callable[[], float]] = {
    "contexts_from_one_token_to_many_pages": lambda: difference(model(16, 6, 2, None), 64, decodes(1, 64, 65, 700)),
    "a_window_that_begins_within_a_page": lambda: difference(model(64, 4, 2, 90), 64, decodes(20, 90, 155, 700)),
    "a_context_that_is_not_split": unsplit,
    "rows_padded_and_a_shape_used_again": lambda: difference(
        model(16, 6, 2, 70), 64, decodes(3, 100, 1000), decodes(65, 300, seed=1), decodes(900, seed=2)
    ),
    "heads_of_an_8b_model_in_pages_of_128": lambda: difference(
        model(128, 32, 8, None), 128, decodes(5, 200, block_tokens=128)
    ),
    "decodes_beside_chunks": lambda: difference(
        model(64, 4, 2, 33), 64, rows_of((7, 130, 100, 40), (1, 1, 33, 40), 64, 3)
    ),
}

if __name__ == "__main__":
    triton_splitk.FwOp.SUPPORTED_DEVICES = {"cpu"}
    torch.cuda.get_device_capability = lambda *_: (9, 0)  # the kernel's shape of an H200
    xformers_splitk.flash = SimpleNamespace(FwOp=DenseChunks)
    print(json.dumps({name: case() for name, case in CASES.items()}))
