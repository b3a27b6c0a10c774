"""What the operating system says of the services' processes: which they are, memory, CPU, descriptors."""

import contextlib
import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
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
    """User and system time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_mib(pid: int) -> float:
    """Memory held now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / 2**20


def num_descriptors(pid: int) -> int:
    """Open files and sockets."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
