"""Puts a TorchEngine together: device, dtype, attention, weights, and as much KV memory as fits."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from engine.attention.choice import Choice, build, choose
from engine.config import ModelConfig, read_eos_ids
from engine.cuda import FULL_STEP_TOKENS, decode_graphs, step_bytes
from engine.grammar.compiler import Compiler
from engine.grammar.constraints import Constraints
from engine.graphs import CudaRecorder
from engine.interface import EngineError, EngineInfo, EngineSettings, Sampling, SequenceStart, Step
from engine.kv_cache import KvCache
from engine.malloc import keep_freed_memory
from engine.memory import Free, check_weights, free_on_host, size_pool
from engine.models.decoder import Decoder
from engine.runner import TorchEngine
from engine.weights import Checkpoint

log = logging.getLogger(__name__)

POSITIONS_BEYOND = 8
"""Steps in flight may run a little past the last position; their tokens are thrown away."""


class Plan(NamedTuple):
    """What an engine runs on: decided before anything is loaded."""

    device: torch.device
    dtype: torch.dtype
    attention: Choice


def plan_engine(config: ModelConfig, settings: EngineSettings) -> Plan:
    """Device, dtype and attention backend.

    Raises:
        EngineError: the settings name a device or a backend that cannot be used here.
    """
    device = _device(settings)
    dtype = _dtype(settings, config, device)
    return Plan(device, dtype, choose(settings, config, device, dtype))


def num_threads(settings: EngineSettings) -> int:
    """Intra-op threads on a CPU."""
    return settings.threads or len(os.sched_getaffinity(0))


def load_torch_engine(
    folder: Path, config: ModelConfig, settings: EngineSettings, progress: Callable[[int, int], None]
) -> TorchEngine:
    """As `engine.load.load_engine`."""
    plan = plan_engine(config, settings)
    checkpoint = Checkpoint(folder, plan.dtype, plan.device)
    num_bytes = checkpoint.count() * plan.dtype.itemsize
    checkpoint.on_read = lambda done_bytes: progress(min(done_bytes, num_bytes), num_bytes)
    check_weights(folder, num_bytes, dtype_name(plan.dtype), free_memory(plan.device))
    eos_ids = read_eos_ids(folder)
    constraints = Constraints(Compiler(folder, config.vocabulary_size, eos_ids), eos_ids, config.vocabulary_size)
    engine = assemble(config, settings, plan, checkpoint, eos_ids=eos_ids, constraints=constraints)
    if unused := checkpoint.check_unused():
        others = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        log.warning("%s: %s%s have no place in %s and are left out", folder, unused[0], others, config.architecture)
    return engine


def assemble(
    config: ModelConfig,
    settings: EngineSettings,
    plan: Plan,
    checkpoint: Checkpoint,
    *,
    eos_ids: frozenset[int],
    constraints: Constraints,
) -> TorchEngine:
    """An engine on the tensors of `checkpoint`, which are on the planned device already; warm.

    Raises:
        EngineError: a tensor is not as the model needs it, or the KV pool does not fit.
    """
    device, dtype, choice = plan
    if device.type == "cpu":
        torch.set_num_threads(num_threads(settings))
        keep_freed_memory()
    else:
        torch.cuda.set_device(device)  # where Triton and graphs launch, whatever their tensors are on
    max_sequence_tokens = settings.max_sequence_tokens or config.max_positions
    model = Decoder(config, checkpoint, max_sequence_tokens + POSITIONS_BEYOND)
    held_bytes = step_bytes(model, choice, max_sequence_tokens) if device.type == "cuda" else 0
    free = free_memory(device)
    if held_bytes:
        left = max(0, free.num_bytes - held_bytes)
        free = Free(left, f"{free.where} beside a step of {FULL_STEP_TOKENS} tokens")
    pool = size_pool(settings, config, choice.block_tokens, dtype.itemsize, free, device=device.type)
    cache = KvCache(config, pool.num_blocks, choice.block_tokens, dtype, device)
    info = EngineInfo(
        model=checkpoint.folder.name,
        architecture=config.architecture,
        num_parameters=checkpoint.num_parameters,
        dtype=dtype_name(dtype),
        device=str(device),
        attention=choice.name,
        num_blocks=pool.num_blocks,
        block_tokens=choice.block_tokens,
        max_sequence_tokens=max_sequence_tokens,
        vocabulary_size=config.vocabulary_size,
        max_steps_in_flight=settings.max_steps_in_flight,
        kv_bytes=pool.num_bytes,
        kv_bound=pool.bound,
        copies_blocks=True,
    )
    attention, graphs = build(choice, config, cache), None
    if device.type == "cuda":
        graphs = decode_graphs(
            model,
            cache,
            attention,
            settings.graphs,
            max_positions=max_sequence_tokens + POSITIONS_BEYOND,
            recorder=CudaRecorder(device),
        )
    engine = TorchEngine(info, model, cache, attention, eos_ids=eos_ids, constraints=constraints, graphs=graphs)
    _warm(engine)
    if graphs is not None:
        graphs.prepare(min(settings.graphs.prepared_tokens, max_sequence_tokens))
    return engine


def _device(settings: EngineSettings) -> torch.device:
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(settings.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(f"engine.device: {settings.device} is not there; CUDA devices: {torch.cuda.device_count()}")
    return device


def _dtype(settings: EngineSettings, config: ModelConfig, device: torch.device) -> torch.dtype:
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if settings.dtype != "auto":
        return names[settings.dtype]
    return torch.float32 if device.type == "cpu" else names[config.dtype]


def free_memory(device: torch.device) -> Free:
    """What may be taken on a device."""
    return Free(torch.cuda.mem_get_info(device)[0], f"on {device}") if device.type == "cuda" else free_on_host()


def dtype_name(dtype: torch.dtype) -> str:
    """As settings and config.json write it."""
    return str(dtype).removeprefix("torch.")


def _warm(engine: TorchEngine) -> None:
    """Run a prefill and a decode of a sequence that is then gone."""
    tokens = np.zeros(16, np.int32)
    num_blocks = -(-len(tokens) // engine.info.block_tokens)
    start = SequenceStart(0, tokens.tobytes(), len(tokens), Sampling(top_p=0.5))
    for position, num_tokens, starts in ((0, len(tokens) - 1, [start]), (len(tokens) - 1, 1, [])):
        step = Step(
            step=0,
            sequences=np.zeros(1, np.int64),
            positions=np.array([position], np.int32),
            num_tokens=np.array([num_tokens], np.int32),
            samples=np.array([True]),
            num_new_blocks=np.array([num_blocks * len(starts)], np.int32),
            new_blocks=np.zeros(num_blocks * len(starts), np.int32),
            starts=starts,
            released=[],
        )
        engine.launch(step)
        engine.collect()
    engine.forget([0])
