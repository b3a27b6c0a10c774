"""Runs the kernels of `engine.triton_operations` on a CPU, under Triton's interpreter.

A program of its own: the interpreter is chosen before Triton is imported. Prints {case: largest difference to torch's
operators, as a share of the largest number} as JSON.
"""

import json
from typing import Any

import torch
from torch import Tensor

from engine.kv_cache import KvCache
from engine.layers import Norm
from engine.operations import TorchOperations
from engine.triton_operations import TritonOperations
from tests.engine.attention.interpreted import model

TOKENS = 5


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


def numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype)


def add_norm(width: int, dtype: torch.dtype, *, adds: bool) -> float:
    """What it returns, and what it leaves in its input."""
    config = model(16, 4, 2, None)
    x, added = numbers(TOKENS, width, dtype=dtype), numbers(TOKENS, width, dtype=dtype)
    norm = Norm(numbers(width, dtype=dtype), 1e-5)
    results = []
    for operations in (TritonOperations(config), TorchOperations(config)):
        changed = x.clone()
        results.append((operations.add_norm(changed, added if adds else None, norm), changed))
    return max(difference(*pair) for pair in zip(*results, strict=True))


def gated(width: int, dtype: torch.dtype) -> float:
    config = model(16, 4, 2, None)
    x = numbers(TOKENS, 2 * width, dtype=dtype)
    return difference(TritonOperations(config).gated(x), TorchOperations(config).gated(x))


def place(head_dim: int, dtype: torch.dtype, *, norms: bool) -> float:
    """Queries, and all of the cache."""
    config = model(head_dim, 6, 2, None)
    qkv = numbers(TOKENS, (6 + 2 * 2) * head_dim, dtype=dtype)
    turns = tuple(numbers(TOKENS, 1, head_dim, dtype=dtype) for _ in range(2))
    head_norms: Any = tuple(Norm(numbers(head_dim, dtype=dtype), config.norm_eps) for _ in range(2)) if norms else None
    slots = torch.tensor([0, 35, 17, 18, 63])
    results = []
    for operations in (TritonOperations(config), TorchOperations(config)):
        cache = KvCache(config, 3, 16, dtype, torch.device("cpu"))
        query = operations.place(qkv.clone(), head_norms, turns, slots=slots, cache=cache, layer=0)
        results.append((query, cache.keys[0], cache.values[0]))
    return max(difference(*pair) for pair in zip(*results, strict=True))


CASES = {
    "a_sum_and_its_norm": lambda: add_norm(96, torch.float32, adds=True),
    "a_norm_alone_in_float16": lambda: add_norm(64, torch.float16, adds=False),
    "a_gate_wider_than_a_program": lambda: gated(1100, torch.float32),
    "heads_normed_turned_and_stored": lambda: place(16, torch.float32, norms=True),
    "heads_of_no_power_of_two_in_float16": lambda: place(24, torch.float16, norms=False),
}

if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps({name: case() for name, case in CASES.items()}))
