"""Puts a TorchEngine together: device, dtype, attention, weights, and as much KV memory as fits."""

import os
import re
from pathlib import Path

import numpy as np
import torch

from engine.attention.choice import Choice, build, choose
from engine.config import ModelConfig, read_eos_ids
from engine.interface import EngineError, EngineInfo, EngineSettings, Sampling, SequenceStart, Step
from engine.kv_cache import SCRATCH_BLOCKS, KvCache
from engine.models.decoder import Decoder
from engine.runner import TorchEngine
from engine.weights import Checkpoint

GIB = 2**30
MEMORY_FILE = Path("/proc/meminfo")
CPU_POOL_BYTES = GIB
CPU_POOL_SEQUENCES = 64
"""On a CPU the pool is not larger than this many sequences of full length need."""
POSITIONS_BEYOND = 8
"""Steps in flight may run a little past the last position; their tokens are thrown away."""


def load_torch_engine(folder: Path, config: ModelConfig, settings: EngineSettings) -> TorchEngine:
    """As `engine.load.load_engine`."""
    device = _device(settings)
    dtype = _dtype(settings, config, device)
    if device.type == "cpu":
        torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
    choice = choose(settings, config, device, dtype)
    max_sequence_tokens = settings.max_sequence_tokens or config.max_positions
    checkpoint = Checkpoint(folder, dtype, device)
    needed, free = checkpoint.count() * dtype.itemsize, _free_bytes(device)
    if needed > free:
        raise EngineError(
            f"{folder}: its weights need {needed / GIB:.2f} GiB as {_name(dtype)} and {free / GIB:.2f} GiB are free on "
            f"{device}: {(needed - free) / GIB:.2f} GiB too much"
        )
    model = Decoder(config, checkpoint, max_sequence_tokens + POSITIONS_BEYOND)
    num_blocks = _num_blocks(settings, config, choice, device, dtype)
    cache = KvCache(config, num_blocks, choice.block_tokens, dtype, device)
    info = EngineInfo(
        model=folder.name,
        architecture=config.architecture,
        num_parameters=checkpoint.num_parameters,
        dtype=_name(dtype),
        device=str(device),
        attention=choice.name,
        num_blocks=num_blocks,
        block_tokens=choice.block_tokens,
        max_sequence_tokens=max_sequence_tokens,
        vocabulary_size=config.vocabulary_size,
        max_steps_in_flight=settings.max_steps_in_flight,
    )
    engine = TorchEngine(info, model, cache, build(choice, config, cache), read_eos_ids(folder))
    _warm(engine)
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


def _num_blocks(
    settings: EngineSettings, config: ModelConfig, choice: Choice, device: torch.device, dtype: torch.dtype
) -> int:
    """Blocks of the pool, beside the scratch block.

    Raises:
        EngineError: the memory left after the weights does not hold what is asked for, or not even one block.
    """
    free = _free_bytes(device) * settings.kv_memory
    token_bytes = config.kv_bytes_per_token * dtype.itemsize
    block_bytes = token_bytes * choice.block_tokens
    wanted_tokens = settings.kv_pool_tokens
    if not wanted_tokens and device.type == "cpu":
        length = settings.max_sequence_tokens or config.max_positions
        wanted_tokens = min(CPU_POOL_BYTES // token_bytes, CPU_POOL_SEQUENCES * length, int(free) // token_bytes)
    num_blocks = wanted_tokens // choice.block_tokens if wanted_tokens else int(free // block_bytes) - SCRATCH_BLOCKS
    needed = (max(num_blocks, 1) + SCRATCH_BLOCKS) * block_bytes
    if needed > free:
        raise EngineError(
            f"the KV pool needs {needed / GIB:.2f} GiB and {free / GIB:.2f} GiB are free on {device} after the weights "
            f"(kv_memory {settings.kv_memory}): {(needed - free) / GIB:.2f} GiB too much; "
            "lower engine.kv_pool_tokens or take a smaller model"
        )
    if num_blocks < 1:
        raise EngineError(
            f"engine.kv_pool_tokens: {settings.kv_pool_tokens} is less than a block, {choice.block_tokens}"
        )
    return num_blocks


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    # Available, not free: what the page cache holds is given back when asked for.
    available = re.search(r"^MemAvailable:\s+(\d+) kB$", MEMORY_FILE.read_text(), re.MULTILINE)
    if available is None:
        raise EngineError(f"{MEMORY_FILE}: does not say MemAvailable")
    return int(available[1]) * 1024


def _name(dtype: torch.dtype) -> str:
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
