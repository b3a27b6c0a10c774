"""What a device can do at most: how fast it copies and how fast it multiplies. Measured, never looked up."""

import time
from collections.abc import Callable

import torch

COPIES, PRODUCTS = 20, 20


def synchronized(device: torch.device) -> float:
    """Seconds of a clock, read when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Of one run, a mean over some after one that does not count."""
    run()
    began = synchronized(device)
    for _ in range(repeats):
        run()
    return (synchronized(device) - began) / repeats


def copy_bandwidth(num_bytes: int, device: torch.device) -> float:
    """Bytes read and written in a second, copying `num_bytes`."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / seconds(lambda: target.copy_(source), COPIES, device)


def matmul_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """Multiplications and additions in a second, of square matrices."""
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / seconds(lambda: torch.mm(left, right, out=out), PRODUCTS, device)
