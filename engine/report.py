"""What the engine finds on this machine and would do with a checkpoint, without loading its weights.

One function a subject; each gives findings or raises the `EngineError` that loading would. Reads only.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from engine import native
from engine.config import ModelConfig
from engine.finding import Finding
from engine.interface import EngineError, EngineSettings
from engine.linear import packing
from engine.load import read_model
from engine.memory import Free, amount, check_weights, size_pool
from engine.models.decoder import Decoder
from engine.torch_engine import Plan, dtype_name, free_memory, num_threads, plan_engine
from engine.weights import Checkpoint


def describe(folder: Path, settings: EngineSettings) -> Iterator[Finding]:
    """All there is to say about an engine of this checkpoint; ends with the first obstacle."""
    yield from _devices()
    try:
        config = read_model(folder, settings)
        yield _model(folder, config, settings)
        plan = plan_engine(config, settings)
        yield from _compute(settings, plan)
        yield from _memory(folder, config, settings, plan)
    except EngineError as error:
        yield Finding("engine", "cannot start", str(error), obstacle=True)


def _devices() -> Iterator[Finding]:
    cores, all_cores = len(os.sched_getaffinity(0)), os.cpu_count()
    yield Finding(
        "cpu", f"{cores} of {all_cores} cores", f"vector instructions: {torch.backends.cpu.get_cpu_capability()}"
    )
    if not torch.version.cuda:
        yield Finding("cuda", "none", f"torch {torch.__version__} is built without it")
    elif not torch.cuda.is_available():
        yield Finding("cuda", "none", f"torch is built for CUDA {torch.version.cuda} and finds no driver or no device")
    else:
        for index in range(torch.cuda.device_count()):
            known = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            yield Finding(
                f"cuda:{index}",
                f"{known.name}, {amount(free)} free of {amount(total)}",
                f"compute capability {known.major}.{known.minor}, CUDA {torch.version.cuda}",
            )


def _model(folder: Path, config: ModelConfig, settings: EngineSettings) -> Finding:
    windows = sorted({window for window in config.windows if window is not None})
    rope = "" if config.rope.kind == "default" else f", {config.rope.kind} rope"
    length = settings.max_sequence_tokens or config.max_positions
    return Finding(
        "model",
        f"{config.architecture}, {length:,} tokens of context",
        f"{folder}: {config.num_layers} layers, hidden {config.hidden_size}, {config.num_heads}/{config.num_kv_heads} "
        f"heads of {config.head_dim}{rope}{f', windows of {windows}' if windows else ''}",
    )


def _compute(settings: EngineSettings, plan: Plan) -> Iterator[Finding]:
    device = "engine.device names it" if settings.device != "auto" else "the first there is of cuda and cpu"
    yield Finding("device", str(plan.device), device)
    dtype = "engine.dtype names it"
    if settings.dtype == "auto":
        dtype = "on a CPU, unless engine.dtype says otherwise" if plan.device.type == "cpu" else "the checkpoint's own"
    yield Finding("dtype", dtype_name(plan.dtype), dtype)
    if plan.device.type == "cpu":
        yield Finding(
            "threads", str(num_threads(settings)), "engine.threads" if settings.threads else "one for each core"
        )
        packed = packing(plan.device.type, plan.dtype)
        yield Finding("products", "packed weights" if packed.packs else "weights as they are", packed.reason)
        located = native.locate()
        yield Finding("kernels", located.variant or "torch's operators", located.reason)
    choice = plan.attention
    yield Finding("attention", choice.name, f"KV blocks of {choice.block_tokens} tokens")
    for name, reason in choice.against.items():
        yield Finding("attention", f"not {name}", reason)


def _memory(folder: Path, config: ModelConfig, settings: EngineSettings, plan: Plan) -> Iterator[Finding]:
    # On the meta device tensors have shapes and no numbers: what loading would refuse is refused, nothing is read.
    checkpoint = Checkpoint(folder, plan.dtype, torch.device("meta"))
    Decoder(config, checkpoint, 1)
    unused = checkpoint.check_unused()
    free, needed = free_memory(plan.device), checkpoint.count() * plan.dtype.itemsize
    check_weights(folder, needed, dtype_name(plan.dtype), free)
    left_out = f"; left out: {', '.join(unused)}" if unused else ""
    yield Finding("weights", amount(needed), f"{checkpoint.num_parameters:,} parameters{left_out}")
    left = Free(free.num_bytes - needed, free.where)
    size = plan.attention.block_tokens
    pool = size_pool(settings, config, size, plan.dtype.itemsize, left, device=plan.device.type)
    less = "; a start takes from it what a full step needs for a while" if plan.device.type == "cuda" else ""
    tokens = f"{pool.num_blocks * size:,} tokens, {amount(pool.num_bytes)}"
    yield Finding("kv pool", tokens, f"bounded by {pool.bound}{less}")
