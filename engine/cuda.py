"""What an engine on CUDA does at its start: measures the memory of a full step, and makes its decode graphs."""

import numpy as np
import torch

from engine.attention.choice import Choice, build
from engine.attention.interface import Attention, GraphAttention, Rows
from engine.graphs import DecodeGraphs, Recorder
from engine.interface import GraphSettings
from engine.kv_cache import KvCache
from engine.models.decoder import Decoder, Inputs

FULL_STEP_TOKENS = 8192
FULL_STEP_ROWS = 256
"""So many rows of a full step sample; the sampler's copies of their logits are the largest tensors of all."""


def decode_graphs(
    model: Decoder,
    cache: KvCache,
    attention: Attention,
    settings: GraphSettings,
    *,
    max_positions: int,
    recorder: Recorder,
) -> DecodeGraphs | None:
    """Graphs of the model's decodes up to `max_positions`, none recorded yet; None where there are to be none."""
    if settings.enable == "off" or not isinstance(attention, GraphAttention):
        return None
    return DecodeGraphs(
        lambda tokens, positions, slots, step: model.hidden(tokens, positions, slots, cache, step),
        attention,
        shapes=settings.decode_buckets,
        block_tokens=cache.block_tokens,
        max_blocks=min(cache.num_blocks, -(-max_positions // cache.block_tokens)),
        device=cache.keys[0].device,
        recorder=recorder,
    )


def step_bytes(model: Decoder, choice: Choice, max_sequence_tokens: int) -> int:
    """Device memory that a full step takes for a while, beside weights and KV: measured by running one."""
    device = model.embedding.device
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    run_full_step(model, choice, max_sequence_tokens, FULL_STEP_TOKENS)
    torch.cuda.synchronize(device)
    peak: int = torch.cuda.max_memory_allocated(device)
    torch.cuda.empty_cache()
    return peak - held


@torch.inference_mode()
def run_full_step(model: Decoder, choice: Choice, max_sequence_tokens: int, num_tokens: int) -> None:
    """Prefill `num_tokens` or a few more in rows as long as they may be, on a KV cache of its own."""
    device, size = model.embedding.device, choice.block_tokens
    length = min(num_tokens, max_sequence_tokens)
    num_rows, num_blocks = -(-num_tokens // length), -(-length // size)
    cache = KvCache(model.config, num_blocks, size, model.embedding.dtype, device)
    lengths = np.full(num_rows, length)
    rows = Rows(num_rows if length == 1 else 0, lengths, lengths, np.tile(np.arange(num_blocks), (num_rows, 1)))
    tokens = torch.zeros(num_rows * length, dtype=torch.int64, device=device)
    positions = torch.arange(length, device=device).repeat(num_rows)
    sampled = torch.arange(min(FULL_STEP_ROWS, len(tokens)), device=device)
    step = build(choice, model.config, cache).plan(rows)
    logits = model.forward(Inputs(tokens, positions, positions, sampled), cache, step)
    logits.float().softmax(-1).sort(-1)
