"""A process that keeps its memory asks the kernel for it once."""

import subprocess
import sys

SCRIPT = """
import ctypes, resource, sys
from engine.malloc import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def use():
    pointer = libc.malloc(2**26)
    ctypes.memset(pointer, 1, 2**26)
    libc.free(pointer)

if sys.argv[1] == "kept":
    keep_freed_memory()
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    return int(subprocess.run([sys.executable, "-c", SCRIPT, mode], capture_output=True, check=True, text=True).stdout)


def test_large_buffers_are_not_faulted_in_again() -> None:
    assert faults("kept") < 100 < faults("as it comes")
