"""Tells glibc's malloc to keep what is freed.

By default it gives buffers of more than some 32 MiB back to the kernel, which hands out zeroed pages again for the next
step's: with a large vocabulary or long chunks that takes longer than much of the arithmetic.
"""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """For this process, from now on; does nothing where malloc is not glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGEST)
        mallopt(TRIM_THRESHOLD, LARGEST)
