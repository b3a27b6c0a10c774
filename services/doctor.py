"""`fairlead doctor`: what is installed, what this machine has, what the engine would do with it, what is in the way.

Starts nothing and writes nothing.
"""

import argparse
import importlib.metadata
import platform
import resource
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from engine.config import read_config
from engine.finding import Finding
from engine.interface import EngineError
from engine.memory import amount, free_on_host
from engine.tokenizer import Tokenizer
from policies.document.loading import load_live_policy
from policies.document.problems import PolicyError
from services.descriptors import FEWEST
from services.policy_reading import read_policy
from services.settings import Deployment, HttpSettings, SettingsError, load_deployment

PACKAGES = ("torch", "xformers", "triton", "safetensors", "tokenizers", "numpy", "msgspec", "aiohttp", "uvloop")
FEW_FILES = 1024
"""Each client takes one, and a gateway some for itself: with so few it serves hundreds of clients, not thousands."""
Part = tuple[str, Iterator[Finding]]


class Diagnosis(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    can_serve: bool
    findings: dict[str, list[Finding]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fairlead doctor`."""
    parser.add_argument("--model", help="Hugging Face checkpoint folder, or demo")
    parser.add_argument("--deployment", type=Path, help="deployment file (default: ops/deployment.yaml)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")


def run(args: argparse.Namespace) -> int:
    """The findings to stdout; 0 when Fairlead can serve here, otherwise 2 and the obstacle to stderr."""
    try:
        deployment = load_deployment(args.deployment)
        if args.model is not None:
            model = args.model if args.model == "demo" else str(Path(args.model).expanduser().absolute())
            deployment = msgspec.structs.replace(deployment, model=model)
        deployment = deployment.resolved()
    except SettingsError as error:
        print(f"fairlead: {error}", file=sys.stderr)
        return 2
    parts: list[Part] = [
        ("versions", versions()),
        ("machine", machine(deployment.http)),
        ("services", services(deployment)),
        ("engine", engine(deployment)),
    ]
    findings = {name: list(part) for name, part in parts}
    obstacles = [finding for part in findings.values() for finding in part if finding.obstacle]
    if args.json:
        diagnosis = Diagnosis(not obstacles, findings)
        print(msgspec.json.format(msgspec.json.encode(diagnosis), indent=2).decode())
    else:
        print("\n\n".join(f"{name}\n{_table(part)}" for name, part in findings.items()))
    for reason in dict.fromkeys(finding.reason for finding in obstacles):
        print(f"fairlead: cannot serve: {reason}", file=sys.stderr)
    return 2 if obstacles else 0


def _table(findings: list[Finding]) -> str:
    subjects = max(len(finding.subject) for finding in findings)
    verdicts = max(len(finding.verdict) for finding in findings)
    return "\n".join(
        f"  {finding.subject:{subjects}}  {finding.verdict:{verdicts}}  {finding.reason}".rstrip()
        for finding in findings
    )


def versions() -> Iterator[Finding]:
    """Of Fairlead, Python and what both the engine and the services stand on."""
    yield Finding(
        "fairlead", _version("fairlead") or "not installed", "" if _version("fairlead") else "run from source"
    )
    yield Finding("python", platform.python_version(), platform.platform())
    for package in PACKAGES:
        yield Finding(package, _version(package) or "not installed")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine(http: HttpSettings) -> Iterator[Finding]:
    """Memory and limits of this process, as a service of the same user would have them."""
    free = free_on_host()
    yield Finding("memory", f"{amount(free.num_bytes)} free", free.where)
    # What a service gives itself at its start.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = hard != resource.RLIM_INFINITY and hard <= FEW_FILES
    reason = "each client takes one; raise it with `ulimit -Hn` to serve thousands" if few else ""
    too_few = few and hard < FEWEST
    yield Finding("open files", "unlimited" if hard == resource.RLIM_INFINITY else str(hard), reason, obstacle=too_few)
    yield _port(http)


def _port(http: HttpSettings) -> Finding:
    """Taken is no obstacle: it may be this very deployment that runs."""
    where = f"{http.host}:{http.port}"
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((http.host, http.port))
        except OSError as error:
            return Finding(
                "http", f"{where} cannot be used now", f"{error.strerror}; `fairlead up --port 0` takes another"
            )
    return Finding("http", where)


def services(deployment: Deployment) -> Iterator[Finding]:
    """What they read before they start."""
    path = Path(deployment.policy)
    try:
        policy = load_live_policy(read_policy(path), str(path))
        yield Finding("policy", policy.name, str(path))
    except OSError as error:
        yield Finding("policy", "cannot be read", f"{path}: {error.strerror}", obstacle=True)
    except PolicyError as error:
        yield Finding("policy", "invalid", str(error.problems[0]), obstacle=True)
    try:
        Tokenizer.load(deployment.model_folder)
        yield Finding("tokenizer", "readable", str(deployment.model_folder))
    except EngineError as error:
        yield Finding("tokenizer", "unusable", str(error), obstacle=True)


def engine(deployment: Deployment) -> Iterator[Finding]:
    """What the executor would run on."""
    settings, folder = deployment.engine, deployment.model_folder
    if settings.kind == "paced":
        yield from _paced(folder)
        return
    try:
        from engine.report import describe  # noqa: PLC0415  torch takes seconds to load, and may be missing
    except ModuleNotFoundError as error:
        missing = f"{error.name} is not installed; pip install 'fairlead[engine]' brings what the executor needs"
        yield Finding("engine", "missing", missing, obstacle=True)
        return
    yield from describe(folder, settings)


def _paced(folder: Path) -> Iterator[Finding]:
    yield Finding("engine", "paced", "engine.kind names it: made-up tokens, no weights")
    try:
        read_config(folder)
    except EngineError as error:
        yield Finding("model", "unusable", str(error), obstacle=True)
