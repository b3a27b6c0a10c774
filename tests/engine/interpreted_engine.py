"""An engine put together as on CUDA, on a CPU under Triton's interpreter: its kernels, its attention, its graphs.

A program of its own: the interpreter is chosen before Triton is imported. Argument: a checkpoint folder. Prints, for
float16 against the plain engine in float32 on the same forced tokens, the share of same choices where they are clear
and the mean difference of logits; then how many passes were recorded and replayed.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from xformers.ops.fmha import triton_splitk

from engine.attention import xformers_splitk
from engine.attention.xformers_splitk import XformersAttention
from engine.cuda import decode_graphs
from engine.interface import EngineSettings, GraphSettings
from engine.kv_cache import KvCache
from engine.load import load_engine
from engine.models import decoder
from engine.triton_operations import TritonOperations
from ops.bench.engine_driver import Batch
from tests.engine.attention.interpreted import DenseChunks
from tests.engine.test_graphs import CalledAgain

SEQUENCES = np.random.default_rng(0).integers(3, 199, (3, 6)).astype(np.int32)
CHUNK = 3
"""Tokens read at once; from there on they come singly."""
CLEAR = 0.1


def forced(engine: Any) -> tuple[np.ndarray, torch.Tensor]:
    """Choices and logits after each token from the chunk's end on."""
    logits, seen = engine._model.logits, []

    def watched(hidden: Any, sampled: Any) -> Any:
        seen.append(logits(hidden, sampled).float())
        return seen[-1]

    engine._model.logits = watched
    tokens = Batch(engine, SEQUENCES, 0).likeliest(CHUNK)
    return tokens, torch.stack(seen, 1)


def as_on_cuda(folder: Path) -> tuple[Any, CalledAgain]:
    engine: Any = load_engine(folder, EngineSettings(device="cpu", dtype="float16", threads=1, kv_pool_tokens=4096))
    model, config, recorder = engine._model, engine._model.config, CalledAgain()
    cache = KvCache(config, 4, 64, torch.float16, torch.device("cpu"))
    attention = XformersAttention(config, cache)
    model._operations = TritonOperations(config)
    decoder._padded = lambda column: column  # only a CPU's products want it
    engine._cache, engine._attention = cache, attention
    engine.info.num_blocks, engine.info.block_tokens = 4, 64
    settings = GraphSettings(decode_buckets=(4,))
    engine._graphs = decode_graphs(model, cache, attention, settings, max_positions=520, recorder=recorder)
    return engine, recorder


if __name__ == "__main__":
    triton_splitk.FwOp.SUPPORTED_DEVICES = {"cpu"}
    xformers_splitk.flash = SimpleNamespace(FwOp=DenseChunks)
    checkpoint = Path(sys.argv[1])
    plain: Any = load_engine(checkpoint, EngineSettings(device="cpu", threads=1, kv_pool_tokens=4096))
    expected, exact = forced(plain)
    ours, recorder = as_on_cuda(checkpoint)
    found, logits = forced(ours)
    best = exact.topk(2, -1).values
    clear = (best[..., 0] - best[..., 1] > CLEAR).numpy()
    same = float((found == expected)[clear].mean())
    print(json.dumps([same, float((logits - exact).abs().mean()), recorder.num_recorded, recorder.num_replayed]))
