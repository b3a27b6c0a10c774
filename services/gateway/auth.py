"""Who is asking: bearer keys against the tenants file, read again whenever it changes.

Owns the file's watch. A file that cannot be used changes nothing: the keys of the last good one stay valid.
"""

import asyncio
import logging
from pathlib import Path

from policies.document.problems import PolicyError
from policies.document.schema import HashedKey, Tenant
from policies.document.tenants import KeyRing, load_tenants
from services.errors import RequestError
from services.files import read_document
from services.runtime import StartError

POLL_S = 1.0
SCHEME = "bearer "

log = logging.getLogger(__name__)

Signature = tuple[int, int, int]

REFUSED = "the API key is not known here, or no longer valid; ask the operator for a valid one"
"""Of all that is no key: who tries keys, or found one, does not learn that it was one once."""


class Keys:
    """The keys of one tenants file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: Signature | None = None
        self.ring: KeyRing | None = None
        """Of the last file that could be used; None: there was none yet."""
        self.num_refused = dict.fromkeys(("missing", "unknown", "revoked", "wrong_scope"), 0)
        """Requests refused for their key, by reason."""

    def load(self) -> None:
        """Read the file for the first time.

        Raises:
            StartError: it cannot be read or used.
        """
        problem = self.refresh()
        if problem:
            raise StartError(problem)

    def refresh(self) -> str:
        """Read the file if it changed. Returns what is wrong with it, or nothing."""
        try:
            signature = _signature(self._path)
            if signature == self._read:
                return ""
            content = read_document(self._path)
            if _signature(self._path) != signature:
                return ""  # it is being written: the next look has it whole
            self._read = signature
            self.ring = KeyRing(load_tenants(content, str(self._path)))
        except OSError as error:
            self._read = None
            return f"{self._path}: the tenants file cannot be read: {error.strerror}"
        except PolicyError as error:
            return str(error)
        return ""

    async def watch(self) -> None:
        """Look at the file for ever."""
        complaint = ""
        while True:
            await asyncio.sleep(POLL_S)
            problem = self.refresh()
            # A file that is still unreadable would otherwise be complained of every second.
            if problem and problem != complaint:
                log.error("the keys of before stay valid, because the tenants file cannot be used:\n%s", problem)
            complaint = problem

    def find(self, authorization: str) -> tuple[Tenant, HashedKey]:
        """Tenant and key of an `Authorization` header.

        Raises:
            RequestError: there is no bearer key in it, or it is unknown or revoked.
        """
        secret = authorization[len(SCHEME) :].strip()
        if not authorization.lower().startswith(SCHEME) or not secret:
            self.num_refused["missing"] += 1
            message = "no API key given; send the header `Authorization: Bearer YOUR_KEY` or `x-api-key: YOUR_KEY`"
            raise RequestError("invalid_api_key", message)
        found = self._find(secret)
        if found is None and not self.refresh():  # a key is good from the moment it was made
            found = self._find(secret)
        if found is None:
            revoked = self.ring is not None and self.ring.is_revoked(secret)
            self.num_refused["revoked" if revoked else "unknown"] += 1
            raise RequestError("invalid_api_key", REFUSED)
        return found

    def _find(self, secret: str) -> tuple[Tenant, HashedKey] | None:
        return self.ring.find(secret) if self.ring is not None else None


def _signature(path: Path) -> Signature:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
