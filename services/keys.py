"""`fairlead keys add | list | revoke`: the API keys in the deployment's tenants file.

A secret is shown once and stored as its SHA-256 digest. Every change is checked by the loader that the gateway uses,
then written to a new file that replaces the old one in one move.
"""

import argparse
import fcntl
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from policies.document.problems import PolicyError
from policies.document.schema import HashedKey, Tenant, Tenants
from policies.document.tenants import KeyRing, digest, load_tenants
from policies.document.tree import plain_value
from services.files import read_document, replace
from services.settings import Deployment, SettingsError, load_deployment

HEADER = "# Tenants and hashed API keys. Written by `fairlead keys`: comments do not survive its next change.\n"
Scope = Literal["inference", "admin"]

DEMO_TENANT = Tenant(name="demo", tier="paid")
OPERATORS = "operators"
"""The tenant of admin keys for which no other is named."""
PREFIXES: dict[Scope, str] = {"inference": "fl-", "admin": "fl-admin-"}
"""Of secrets: who finds one somewhere can tell what it opens."""


class KeysError(Exception):
    """A command that cannot be carried out; the sentence says why and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make a key and print it, once", description="Make a key and print it, once.")
    add.add_argument("--tenant", metavar="NAME", help="whose key it is; a new name makes a new tenant")
    add.add_argument(
        "--admin",
        dest="scope",
        action="store_const",
        const="admin",
        default="inference",
        help=f"a key for the console, not for requests (of the tenant {OPERATORS}, if no other is named)",
    )
    add.add_argument("--tier", help="the tenant's tier, matched by `classify` rules (a new tenant's default: free)")
    add.add_argument("--weight", type=float, help="the tenant's share relative to others (a new tenant's default: 1)")
    add.add_argument("--project", default="default", metavar="NAME", help="the project of the key (default: default)")
    show = actions.add_parser("list", help="list keys, revoked ones too", description="List keys, revoked ones too.")
    show.add_argument("--json", action="store_true", help="as a JSON list")
    revoke = actions.add_parser("revoke", help="refuse a key from now on", description="Refuse a key from now on.")
    revoke.add_argument("id", metavar="ID", help="the key's id, as `fairlead keys list` shows it")
    for action in (add, show, revoke):
        action.add_argument("--data-dir", metavar="DIR", help="the deployment's data folder")
    add.set_defaults(act=_add)
    show.set_defaults(act=_list)
    revoke.set_defaults(act=_revoke)


def run(args: argparse.Namespace) -> int:
    """Carry out one action; 2 and a sentence on stderr if it cannot be."""
    act: Callable[[Path, argparse.Namespace], None] = args.act
    try:
        deployment = load_deployment()
        if args.data_dir:
            deployment = msgspec.structs.replace(deployment, data=str(Path(args.data_dir).absolute()))
        act(Path(deployment.resolved().tenants), args)
    except (KeysError, PolicyError, SettingsError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def ensure_demo_key(deployment: Deployment) -> str:
    """The key of the tenant `demo`, made together with the tenants file when there is none yet.

    Args:
        deployment: a resolved deployment.

    Returns:
        The secret, the same at every start; "" where the tenants file is not ours or the key was revoked.

    Raises:
        PolicyError: the tenants file cannot be used.
        OSError: a file cannot be read or written.
    """
    tenants_file, secret_file = Path(deployment.tenants), Path(deployment.data) / "demo.key"
    with _locked(tenants_file):
        if not tenants_file.exists():
            secret, key = _new_key("default")
            # The secret first: a crash between the two starts over, it never leaves a key that nobody has.
            replace(secret_file, f"{secret}\n".encode())
            _write(tenants_file, Tenants(tenants=(msgspec.structs.replace(DEMO_TENANT, keys=(key,)),)))
            return secret
    if not secret_file.exists():
        return ""
    secret = secret_file.read_text().strip()
    valid = {key.sha256 for tenant in _read(tenants_file).tenants for key in tenant.keys if not key.revoked}
    return secret if digest(secret) in valid else ""


def ensure_admin_key(deployment: Deployment) -> tuple[str, Path | None]:
    """The key of the console, made once where there is a demo key.

    Args:
        deployment: a resolved deployment that has its demo key.

    Returns:
        The secret if it was made just now, else "", and the file that has it; None: there is no valid one.

    Raises:
        PolicyError: the tenants file cannot be used.
        OSError: a file cannot be read or written.
    """
    tenants_file, secret_file = Path(deployment.tenants), Path(deployment.data) / "admin.key"
    with _locked(tenants_file):
        if secret_file.exists():
            valid = KeyRing(_read(tenants_file)).find(secret_file.read_text().strip())
            return "", secret_file if valid else None
        secret, key = _new_key("default", "admin")
        _write(tenants_file, _with_key(_read(tenants_file), OPERATORS, key)[0])
        replace(secret_file, f"{secret}\n".encode())
    return secret, secret_file


def _add(path: Path, args: argparse.Namespace) -> None:
    name = args.tenant or (OPERATORS if args.scope == "admin" else None)
    if name is None:
        raise KeysError("whose key? add --tenant NAME, or --admin for a key of the console")
    secret, key = _new_key(args.project, args.scope)
    with _locked(path):
        tenants, tenant = _with_key(_read(path), name, key, args.tier, args.weight)
        _write(path, tenants)
    print(secret)
    about = "for the console" if key.scope == "admin" else f"project {key.project}"
    print(
        f"key {key.id} of tenant {tenant.name} (tier {tenant.tier}, weight {tenant.weight:g}, {about}); "
        "it is not shown again",
        file=sys.stderr,
    )


def _with_key(
    tenants: Tenants, name: str, key: HashedKey, tier: str | None = None, weight: float | None = None
) -> tuple[Tenants, Tenant]:
    """The tenants when this one has a key more, and that tenant."""
    old = next((tenant for tenant in tenants.tenants if tenant.name == name), None)
    tenant = old or Tenant(name=name)
    tenant = msgspec.structs.replace(
        tenant,
        tier=tenant.tier if tier is None else tier,
        weight=tenant.weight if weight is None else weight,
        keys=(*tenant.keys, key),
    )
    kept = [tenant if one is old else one for one in tenants.tenants]
    return Tenants(tenants=tuple(kept if old else [*kept, tenant])), tenant


def _list(path: Path, args: argparse.Namespace) -> None:
    rows = [
        {
            "id": key.id,
            "tenant": tenant.name,
            "tier": tenant.tier,
            "project": key.project,
            "scope": key.scope,
            "revoked": key.revoked,
        }
        for tenant in _read(path).tenants
        for key in tenant.keys
    ]
    if args.json:
        print(msgspec.json.encode(rows).decode())
        return
    table: list[tuple[str, ...]] = [("ID", "TENANT", "TIER", "PROJECT", "SCOPE", "STATE")]
    for row in rows:
        state = "revoked" if row["revoked"] else "active"
        table.append((*(str(row[column]) for column in ("id", "tenant", "tier", "project", "scope")), state))
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    for cells in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def _revoke(path: Path, args: argparse.Namespace) -> None:
    with _locked(path):
        tenants = _read(path).tenants
        keys = {key.id: key for tenant in tenants for key in tenant.keys}
        if args.id not in keys:
            known = ", ".join(keys) or "none"
            raise KeysError(f'there is no key "{args.id}" in {path}; its keys: {known}')
        if keys[args.id].revoked:
            raise KeysError(f'the key "{args.id}" is already revoked')
        _write(path, Tenants(tenants=tuple(_without(tenant, args.id) for tenant in tenants)))
    print(f"revoked {args.id}")


def _without(tenant: Tenant, key_id: str) -> Tenant:
    keys = tuple(msgspec.structs.replace(key, revoked=key.revoked or key.id == key_id) for key in tenant.keys)
    return msgspec.structs.replace(tenant, keys=keys)


def _new_key(project: str, scope: Scope = "inference") -> tuple[str, HashedKey]:
    secret = f"{PREFIXES[scope]}{secrets.token_urlsafe(32)}"
    return secret, HashedKey(id=f"key_{secrets.token_hex(6)}", sha256=digest(secret), project=project, scope=scope)


def _read(path: Path) -> Tenants:
    try:
        return load_tenants(read_document(path), str(path))
    except FileNotFoundError:
        return Tenants()


def _write(path: Path, tenants: Tenants) -> None:
    document = {"version": 1, **msgspec.to_builtins(tenants)}
    text = HEADER + yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    try:
        load_tenants(text.encode(), str(path))
    except PolicyError as error:
        # What was in the file was right, so what is wrong came with the command; no place in a file to point at.
        sentences = [f"{problem.section}: {problem.wrong}; {problem.allowed}" for problem in error.problems]
        raise KeysError("\n".join(sentences)) from error
    replace(path, text.encode())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time: a lock on the folder leaves no file behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


class _Dumper(yaml.SafeDumper):
    """Quotes what our loader would not read as text (YAML 1.2), such as a digest that looks like a number."""

    def represent_text(self, text: str) -> Any:
        style = None if isinstance(plain_value(text), str) else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)
