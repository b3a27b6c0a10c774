"""What the operating system says of the services' processes: which they are, memory, CPU, descriptors."""

import contextlib
import os
import time
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
KEEPER = "keeper"


def pids(folder: str) -> dict[str, int]:
    """The processes of the services that run on a folder, and of the keeper."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if folder.encode() not in (entry / "environ").read_bytes():
                continue
            if b"serve" in words:
                found[words[words.index(b"serve") + 1].decode()] = int(entry.name)
            elif b"services.telemetry.keeper" in words:
                found[KEEPER] = int(entry.name)
    return found


def cpu_s(pid: int) -> float:
    """User and system time, to the nanosecond."""
    # The kernel's clock of another process's CPU (clock_getcpuclockid): /proc knows hundredths of a second alone.
    return time.clock_gettime((~pid << 3) | 2)


def rss_mib(pid: int) -> float:
    """Memory held now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / 2**20


def num_descriptors(pid: int) -> int:
    """Open files and sockets."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
