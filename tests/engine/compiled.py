"""Compiles for an H200, on a machine without one, the Triton kernels that an 8B model's decode step calls.

Calls our code as it is called, with a compiler in place of the launch. Prints {kernel: [shared memory bytes, machine
code bytes]} as JSON.
"""

import json
from typing import Any

import numpy as np
import torch
from triton import compiler
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from xformers.ops.fmha import triton_splitk

from engine.attention.interface import Rows
from engine.attention.xformers_splitk import XformersAttention
from engine.kv_cache import KvCache
from engine.layers import Norm
from engine.triton_operations import TritonOperations
from tests.engine.attention.interpreted import model

H200 = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages")
compiled: dict[str, list[int]] = {}


def only_compile(self: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
    """In place of `JITFunction.run`."""
    values = dict(zip(self.arg_names, args, strict=False)) | named
    options = {name: values.pop(name) for name in OPTIONS if name in values}
    signature, constants = {}, {}
    for parameter in self.params:
        value = values[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
        else:
            signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
    kernel = compiler.compile(compiler.ASTSource(self, signature, constants), target=H200, options=options)
    compiled[self.fn.__name__] = [kernel.metadata.shared, len(kernel.asm["cubin"])]


def decode(window: int | None) -> None:
    config = model(128, 32, 8, window)
    half = torch.float16  # xformers takes bfloat16 on a GPU alone
    cache = KvCache(config, 20, 64, half, torch.device("cpu"))
    rows = Rows(3, np.ones(3, np.int64), np.array([5, 70, 700]), np.ones((3, 11), np.int64))
    XformersAttention(config, cache).plan(rows).attend(0, torch.zeros(3, 32, 128, dtype=half))


def between_products() -> None:
    config = model(128, 32, 8, None)
    cache = KvCache(config, 2, 64, torch.bfloat16, torch.device("cpu"))
    operations = TritonOperations(config)

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.bfloat16)

    norms = Norm(zeros(128), 1e-6), Norm(zeros(128), 1e-6)
    turns = zeros(3, 1, 128), zeros(3, 1, 128)
    operations.add_norm(zeros(3, 4096), zeros(3, 4096), Norm(zeros(4096), 1e-6))
    operations.gated(zeros(3, 2 * 12288))
    operations.place(zeros(3, 48 * 128), norms, turns, slots=torch.arange(3), cache=cache, layer=0)


if __name__ == "__main__":
    JITFunction.run = only_compile
    triton_splitk.FwOp.SUPPORTED_DEVICES = {"cpu"}
    torch.cuda.get_device_capability = lambda *_: (9, 0)  # as an H200
    decode(None)
    decode(100)
    between_products()
    print(json.dumps(compiled))
