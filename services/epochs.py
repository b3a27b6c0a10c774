"""Which start of a service is the newest: numbers that grow from one start to the next, whatever the wall clock does.

A listener refuses who comes with a smaller number than it has seen. By the wall clock alone, a service that is started
again after that was put back would be refused until it has caught up.
"""

import contextlib
import hashlib
import socket
import time
from pathlib import Path

from services.files import replace

ROOM = 10**9
"""Numbers between two starts, for the connections of the first."""


def first_epoch(data: str, service: str, instance: str) -> int:
    """Of a start of this instance on this data folder: nanoseconds since 1970, or more than its last start can have
    come to. Kept in the folder; where that cannot be written the clock alone counts.
    """
    path = Path(data) / "epochs" / f"{service}-{instance}"
    try:
        after = int(path.read_text()) + ROOM
    except (OSError, ValueError):
        after = 0
    epoch = max(time.time_ns(), after)
    with contextlib.suppress(OSError):
        replace(path, f"{epoch}\n".encode())
    return epoch


def place_name(data: str) -> str:
    """Names a data folder of a machine: the same for every start there, and another anywhere else."""
    return hashlib.blake2b(f"{socket.gethostname()}:{data}".encode(), digest_size=4).hexdigest()
