"""The C++ library as functions of tensors. Each says what it computes in torch's terms; the tests compare the two.

All tensors are contiguous unless said, on the CPU, of the one dtype that the kernels were made for. A row's result does
not depend on the other rows.
"""

import ctypes
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
NO_WINDOW = 2**40
POINTER, LONG, FLOAT, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int


class HeadShape(NamedTuple):
    """How heads lie in a token's projection: queries, then keys, then values."""

    queries: int
    keys: int
    size: int


class Paged(NamedTuple):
    """Rows of a step as the kernel reads them, all contiguous."""

    tables: Tensor
    """Block ids int32 [rows, blocks]."""
    contexts: Tensor
    """int64 [rows]."""
    num_tokens: Tensor
    """int64 [rows]."""


class Kernels:
    """The library of `path` for tensors of `dtype`, on as many threads as torch has now."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self._threads = torch.get_num_threads()
        library = ctypes.CDLL(str(path))

        def bound(name: str, *arguments: Any) -> Any:
            function = library[f"{name}_{SUFFIXES[dtype]}"]
            function.argtypes, function.restype = arguments, None
            return function

        self._add_norm = bound("add_norm", *[POINTER] * 4, LONG, LONG, FLOAT, INT)
        self._gated = bound("gated", POINTER, POINTER, LONG, LONG, INT)
        self._place = bound("place", *[POINTER] * 3, FLOAT, *[POINTER] * 5, *[LONG] * 4, INT)
        self._attend = bound("attend", POINTER, LONG, *[POINTER] * 4, LONG, POINTER, POINTER, *[LONG] * 6, FLOAT, INT)

    def add_norm(self, x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """`x += added`, in place; then rms_norm(x). All [tokens, width]; width a multiple of 16."""
        out = torch.empty_like(x)
        pointer = None if added is None else added.data_ptr()
        self._add_norm(
            x.data_ptr(), pointer, weight.data_ptr(), out.data_ptr(), len(x), x.shape[-1], eps, self._threads
        )
        return out

    def gated(self, x: Tensor) -> Tensor:
        """silu(gate) * up of [tokens, 2 * width], gate half first; width a multiple of 16."""
        out = x.new_empty(len(x), x.shape[-1] // 2)
        self._gated(x.data_ptr(), out.data_ptr(), len(x), out.shape[-1], self._threads)
        return out

    def place(
        self,
        qkv: Tensor,
        heads: HeadShape,
        *,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
        turns: tuple[Tensor, Tensor],
        slots: Tensor,
        pool: tuple[Tensor, Tensor],
    ) -> None:
        """Turn the queries of `qkv` in place and the keys into the pool, both normed first if there are weights.

        `turns`: cos and sin of each token [tokens, 1, size], as `layers.Rotary` makes them; `slots`: int64 [tokens];
        `pool`: keys and values of the layer.
        """
        query_norm, key_norm = (None, None) if norms is None else (norms[0].data_ptr(), norms[1].data_ptr())
        self._place(
            qkv.data_ptr(),
            query_norm,
            key_norm,
            eps,
            turns[0].data_ptr(),
            turns[1].data_ptr(),
            slots.data_ptr(),
            pool[0].data_ptr(),
            pool[1].data_ptr(),
            len(qkv),
            *heads,
            self._threads,
        )

    def attend(
        self, query: Tensor, heads: HeadShape, paged: Paged, pool: tuple[Tensor, Tensor], window: int | None
    ) -> Tensor:
        """Attention of `query` [tokens, heads, size], whose tokens may lie apart, over blocks of a multiple of 16."""
        # Zeros, for tokens beyond the rows: what an empty tensor holds might be slow to compute with.
        out = torch.zeros(query.shape, dtype=query.dtype)
        self._attend(
            query.data_ptr(),
            query.stride(0),
            out.data_ptr(),
            pool[0].data_ptr(),
            pool[1].data_ptr(),
            paged.tables.data_ptr(),
            paged.tables.shape[1],
            paged.contexts.data_ptr(),
            paged.num_tokens.data_ptr(),
            len(paged.tables),
            pool[0].shape[1],
            window or NO_WINDOW,
            *heads,
            heads.size**-0.5,
            self._threads,
        )
        return out
