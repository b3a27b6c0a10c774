"""What `varlen_attn` is given makes it plain attention: checked with a kernel written from its documentation."""

from typing import Any

import numpy as np
import pytest

from engine.attention.interface import Rows
from tests.engine.attention.test_attention import CONTEXTS, LENGTHS, filled_cache, model, plain


def written_out(  # noqa: PLR0917  the order of varlen_attn
    query: Any,
    keys: Any,
    values: Any,
    query_starts: Any,
    key_starts: Any,
    longest_queries: int,
    longest_context: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Any,
    block_table: Any,
    num_splits: int,
) -> Any:
    """`torch.nn.attention.varlen.varlen_attn` as documented, one sequence after the other."""
    import torch

    assert enable_gqa
    assert num_splits == 1  # pytorch issue 194167
    assert all(t.dtype == torch.int32 for t in (query_starts, key_starts, seqused_k, block_table))
    assert query.is_contiguous()
    out = torch.empty_like(query)
    groups = query.shape[1] // keys.shape[2]
    for row, used in enumerate(seqused_k.tolist()):
        first, last = query_starts[row : row + 2].tolist()
        assert last - first <= longest_queries
        assert used <= longest_context
        assert key_starts[row + 1] - key_starts[row] >= used
        k, v = (pool[block_table[row]].flatten(0, 1)[:used].repeat_interleave(groups, 1) for pool in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query[first:last], k) / query.shape[-1] ** 0.5
        distance = torch.arange(used - (last - first), used)[:, None] - torch.arange(used)
        seen = distance >= -window_size[1]
        if window_size[0] >= 0:
            seen &= distance <= window_size[0]
        out[first:last] = torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
    return out


@pytest.mark.parametrize("layer", [0, 1])
def test_a_mixed_step_is_one_call_that_is_plain_attention(layer: int) -> None:
    import torch

    from engine.attention.varlen_paged import VarlenAttention

    cache, rows = filled_cache(256)
    query = torch.randn(sum(LENGTHS), 6, 16)
    attended = VarlenAttention(model(), cache, written_out).plan(rows).attend(layer, query)
    assert (attended - plain(cache, rows, query, layer)).abs().max() < 2e-6


@pytest.mark.parametrize("layer", [0, 1])
def test_steady_decodes_are_plain_attention_and_keep_their_memory(layer: int) -> None:
    import torch

    from engine.attention.varlen_paged import VarlenAttention

    cache, rows = filled_cache(256)
    backend = VarlenAttention(model(), cache, written_out)
    decodes = backend.steady(4, 2)
    assert decodes is backend.steady(4, 2)
    addresses = [tensor.data_ptr() for tensor in decodes._call.tensors]
    for count in (3, 1, 2):
        ours = Rows(count, rows.num_tokens[:count], rows.contexts[:count], rows.tables[:count])
        decodes.fill(ours)
        query = torch.randn(4, 6, 16)
        attended = decodes.attend(layer, query)[:count]
        expected = plain(cache, ours, query[:count], layer)
        assert (attended - expected).abs().max() < 2e-6
    assert [tensor.data_ptr() for tensor in decodes._call.tensors] == addresses
    assert np.array(CONTEXTS[:3]).tolist() == rows.contexts[:3].tolist()
