"""500 kinds of damage to a policy, a tenants and a deployment file; each must be refused with its place and its reason.

A kind is a way to damage a document and the place where it is done. Each is wrong by how it was made, whatever the
schema says, so that a loader which takes one is wrong; what is only unlikely (a byte that changed into another letter)
is not among them. They reach the loaders as saves of the file that the services watch.
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from ops.bench.damage_kinds import damages
from ops.bench.harness import Paired, Row, at_least, at_most
from services.admission.policy_files import PolicyFile, PolicyRevisions
from services.gateway.auth import Keys
from services.progress import progress_bar
from services.settings import REPOSITORY, SettingsError, load_deployment

SLOWEST_S = 1.0

POLICY = (REPOSITORY / "policies" / "fairlead.yaml").read_bytes() + (
    b"limits:\n"
    b"  - {scope: key, dimension: requests, rate_per_min: 60, when: {tier: free}}\n"
    b"  - {scope: tenant, dimension: total_tokens, rate_per_day: 100000}\n"
    b"queue: {per_tenant_max: 100, total_max: 1000, ttl_s: 60}\n"
)
TENANTS = (REPOSITORY / "policies" / "tenants.yaml").read_bytes()
DEPLOYMENT = (REPOSITORY / "ops" / "deployment.yaml").read_bytes() + (
    b"streams: {lease_s: 30.0, allow_plaintext: false}\n"
    b"telemetry: {metrics: {host: 127.0.0.1, gateway: 9461}}\n"
    b"shared_store: {stale_ok_s: 5.0, fail: {limits: closed}}\n"
)
DOCUMENTS = {"policy": POLICY, "tenants": TENANTS, "deployment": DEPLOYMENT}


class Refused(NamedTuple):
    """What became of one save."""

    said: str
    """Why it was refused; empty: it was taken."""
    stays: bool
    """What was in force before still is."""


class SavedPolicy:
    """A policy file as admission watches it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "policy.yaml"
        self.path.write_bytes(POLICY)
        self._rejected: list[str] = []
        self._revisions = PolicyRevisions(
            str(self.path), lambda *_: None, lambda _, __, why: self._rejected.append(why)
        )
        self._file = PolicyFile(self.path, self._revisions.saved, self._revisions.unusable)
        self._revisions.first(self._file.read())

    def look(self) -> Refused:
        """The services look until the file has settled, or they complain that it cannot be read."""
        self._rejected.clear()
        self._file.forget()
        content = None
        while content is None and not self._file.problem:
            content = self._file.look()
        if content is None:
            self._revisions.unusable(b"", self._file.problem)
            self._file.problem = ""
        elif content[1]:
            self._revisions.unusable(*content)
        else:
            self._revisions.saved(content[0])
        stays = self._revisions.revision == 1 and self._revisions.document == POLICY
        return Refused("\n".join(self._rejected), stays)


class SavedTenants:
    """A tenants file as a gateway watches it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tenants.yaml"
        self.path.write_bytes(TENANTS)
        self._keys = Keys(self.path)
        self._keys.load()
        self._ring = self._keys.ring

    def look(self) -> Refused:
        """The gateway looks once."""
        said = self._keys.refresh()
        return Refused(said, self._keys.ring is self._ring)


class SavedDeployment:
    """A deployment file as a service reads it at its start."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "deployment.yaml"

    def look(self) -> Refused:
        """A start."""
        try:
            load_deployment(self.path)
        except SettingsError as error:
            return Refused(str(error), stays=True)
        return Refused("", stays=False)


SAVED: dict[str, type[SavedPolicy | SavedTenants | SavedDeployment]] = {
    "policy": SavedPolicy,
    "tenants": SavedTenants,
    "deployment": SavedDeployment,
}


def run(arguments: argparse.Namespace) -> list[Row]:
    """Do all of it; the figures are shares of what was done, and seconds of the slowest."""
    del arguments
    # The services say each refusal; here the figures do.
    logging.disable(logging.CRITICAL)
    rows: list[Row] = []
    for name, document in DOCUMENTS.items():
        kinds = damages(document)
        right, slowest_s, failed = 0, 0.0, []
        with tempfile.TemporaryDirectory() as folder, progress_bar(f"damage to a {name} file") as show:
            saved = SAVED[name](Path(folder))
            for number, damage in enumerate(kinds, start=1):
                saved.path.write_bytes(damage.content)
                began = time.perf_counter()
                refused = saved.look()
                slowest_s = max(slowest_s, time.perf_counter() - began)
                if refused.stays and is_placed(refused.said, saved.path):
                    right += 1
                else:
                    failed.append(damage.kind)
                show(number, len(kinds))
        share, pace = right / len(kinds), slowest_s / SLOWEST_S
        note = f"{len(kinds)} kinds" + (f"; not so: {', '.join(failed[:5])}" if failed else "")
        row = at_least(f"{name}_damage_refused", "share", _single(share), must=1.0, stretch=1.0)
        rows.append(msgspec.structs.replace(row, note=note))
        rows.append(at_most(f"{name}_damage_slowest", "s", _single(pace), must=1.0, stretch=0.5))
    return rows


def is_placed(said: str, path: Path) -> bool:
    """Whether each line of a refusal says which file, line and column, what is wrong there and what is right."""
    lines = [line for line in said.splitlines() if not line.startswith("... and ")]
    return bool(lines) and all(_is_placed(line, path) for line in lines)


def _is_placed(line: str, path: Path) -> bool:
    file, _, rest = line.partition(f"{path}:")
    row, _, rest = rest.partition(":")
    column, _, rest = rest.partition(": ")
    wrong, _, right = rest.partition("; ")
    return not file and row.isdecimal() and column.isdecimal() and bool(wrong) and bool(right)


def _single(value: float) -> Paired:
    return Paired(value, 1.0, value, (value, value))
