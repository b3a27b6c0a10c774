"""Files that are replaced whole: a reader sees the old or the new content, never half. And how one that people write is
read: without waiting for it, and not without end.
"""

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from policies.document.tree import MAX_BYTES

PRIVATE = 0o600
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_document(path: Path) -> bytes:
    """All of a file that an operator names (a policy, tenants, a deployment, a password); of one that has more bytes
    than any of them may, one byte more than that.

    Raises:
        OSError: it cannot be read, or is no regular file: a FIFO would keep its reader waiting for ever, a device may
            have no end.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb", closefd=True) as file:
        kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
        if kind != stat.S_IFREG:
            raise OSError(errno.EINVAL, f"it is {KINDS.get(kind, 'something else')}, not a regular file", str(path))
        return file.read(MAX_BYTES + 1)


def exposure(path: Path) -> str:
    """Why a file with a secret in it cannot be used, as a sentence: others may read or change it; empty: they may not.

    A group may read what root put there, as secrets are given to containers.

    Raises:
        OSError: there is no such file.
    """
    state = path.stat()
    allowed = PRIVATE | 0o140 if state.st_uid == 0 != os.geteuid() else PRIVATE | 0o100
    if not (mode := stat.S_IMODE(state.st_mode)) & ~allowed:
        return ""
    return f"{path}: others than its owner can reach this secret (mode {mode:04o}); mend it with `chmod 600 {path}`"


def keep_private() -> None:
    """What this process and its children make from now on is for its user alone: logs and records, whose folder may be
    anywhere, name tenants, and a resolved deployment has what was in the file.
    """
    os.umask(0o077)


def replace(path: Path, content: bytes, mode: int = PRIVATE) -> None:
    """Write a file by way of a new one that takes its place; what was written is on the disk when this returns.

    Raises:
        OSError: the folder or the file cannot be written; the old content is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time: whoever comes second waits. The file is made, and stays.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
