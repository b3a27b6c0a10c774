"""A process that keeps its memory asks the kernel for it once; one that gives it back is as small as what lives."""

import subprocess
import sys

SCRIPT = """
import ctypes, resource, sys
from pathlib import Path
from engine.malloc import give_back_freed_memory, keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def take(size):
    pointer = libc.malloc(size)
    ctypes.memset(pointer, 1, size)
    return pointer

def faults():
    libc.free(take(2**26))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        libc.free(take(2**26))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 2**20

def left_mib():
    libc.free(take(2**24))  # and so the threshold is there, as it comes
    before = resident_mib()
    bodies = []
    for _ in range(16):
        bodies.append(take(2**22))
        take(2**16)  # lives on
    for body in bodies:
        libc.free(body)
    return resident_mib() - before

{"kept": keep_freed_memory, "given back": give_back_freed_memory, "as it comes": int}[sys.argv[1]]()
print({"faults": faults, "left": left_mib}[sys.argv[2]]())
"""


def measured(mode: str, what: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, mode, what], capture_output=True, check=True, text=True)
    return int(done.stdout)


def test_large_buffers_are_not_faulted_in_again() -> None:
    assert measured("kept", "faults") < 100 < measured("as it comes", "faults")


def test_bodies_that_are_gone_leave_no_holes() -> None:
    assert 4 * measured("given back", "left") < measured("as it comes", "left")
