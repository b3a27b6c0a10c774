"""Tells glibc's malloc what becomes of what is freed: by default something between the two here.

Buffers above a threshold are the kernel's own pages, which go back to it; the threshold rises, up to 32 MiB, with each
of them that is freed.
"""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # malloc.h
LARGEST = 2**31 - 1
BODY_BYTES = 2**19
"""From here on a buffer is somebody's long prompt, answer or schema, of which there are few."""


def keep_freed_memory() -> None:
    """For this process, from now on; does nothing where malloc is not glibc's.

    For arrays of every step: the kernel hands out zeroed pages, and with a large vocabulary or long chunks that takes
    longer than much of the arithmetic.
    """
    _set({MMAP_THRESHOLD: LARGEST, TRIM_THRESHOLD: LARGEST})


def give_back_freed_memory() -> None:
    """For this process, from now on; does nothing where malloc is not glibc's.

    For services: long bodies at once leave holes between what lives on, and a process that has seen a few would stay
    as large as they were together. Threads share one heap, for the holes in each add up.
    """
    _set({MMAP_THRESHOLD: BODY_BYTES, ARENA_MAX: 2})


def _set(options: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)
