"""What the gateway's own processes share: a line is an answer, and memory is bounded from what is there already."""

import resource
import sys
from pathlib import Path


def say(line: bytes) -> None:
    """Answer the gateway with this line."""
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def bound_memory(more_bytes: int) -> None:
    """This process may take so much beside what it has."""
    # What RLIMIT_DATA counts of it now.
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + more_bytes,) * 2)
