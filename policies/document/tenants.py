"""Tenants and their API keys: loading with the policy's error messages, and who a key belongs to.

Pure: knows digests, never stores a secret, reads no file.
"""

import hashlib
import hmac

from msgspec import UNSET, inspect

from policies.document.problems import PolicyError
from policies.document.reading import Path, Reading
from policies.document.schema import HashedKey, Tenant, Tenants
from policies.document.tree import parse

_TENANTS = inspect.type_info(Tenants)


def load_tenants(text: bytes, file: str = "tenants") -> Tenants:
    """The tenants that a YAML document declares.

    Args:
        text: the document, UTF-8.
        file: what error messages call it.

    Raises:
        PolicyError: the document cannot be used; `problems` has everything wrong with it.
    """
    reading = Reading(parse(text, file), _TENANTS, file)
    _check(reading)
    if reading.problems:
        raise PolicyError(reading.problems)
    tenants: Tenants = reading.get(())
    return tenants


def digest(secret: str) -> str:
    """SHA-256 of a key as stored: 64 hexadecimal digits."""
    return hashlib.sha256(secret.encode("utf-8", errors="surrogatepass")).hexdigest()


class KeyRing:
    """Finds the tenant of a key. Built once per tenants file; never changes."""

    def __init__(self, tenants: Tenants) -> None:
        self._by_digest = {key.sha256: (tenant, key) for tenant in tenants.tenants for key in tenant.keys}

    def find(self, secret: str) -> tuple[Tenant, HashedKey] | None:
        """The tenant and key that a secret opens; None if it is unknown or revoked."""
        found = self._lookup(secret)
        return None if found is None or found[1].revoked else found

    def is_revoked(self, secret: str) -> bool:
        """Whether the secret was a key once: a refusal may say so to whoever holds it."""
        found = self._lookup(secret)
        return found is not None and found[1].revoked

    def _lookup(self, secret: str) -> tuple[Tenant, HashedKey] | None:
        wanted = digest(secret)
        found = self._by_digest.get(wanted)
        if found is None or not hmac.compare_digest(found[1].sha256, wanted):
            return None
        return found


def _check(reading: Reading) -> None:
    names: dict[str, Path] = {}
    ids: dict[str, Path] = {}
    digests: dict[str, Path] = {}
    for index in range(reading.length(("tenants",))):
        tenant: Path = ("tenants", index)
        _unique(reading, (*tenant, "name"), names, "the tenant", "every tenant needs a name of its own")
        for position in range(reading.length((*tenant, "keys"))):
            key: Path = (*tenant, "keys", position)
            _unique(reading, (*key, "id"), ids, "the key id", "ids are unique in the whole file")
            _unique(reading, (*key, "sha256"), digests, "the digest", "every key has a digest of its own")


def _unique(reading: Reading, path: Path, seen: dict[str, Path], what: str, allowed: str) -> None:
    value = reading.get(path)
    if value is UNSET:
        return
    if value in seen:
        first = reading.nodes[seen[value]].at
        reading.add(path, f'{what} "{value}" is here twice, first at {first.line}:{first.column}', allowed)
    seen.setdefault(value, path)
