"""What must exist before the services start: folders, the streams' secret, a first API key, a readable model.

Everything here may run any number of times: what exists is kept. `fairlead up` does it before it starts the services,
`fairlead setup` does it alone (a container deployment runs it once).
"""

import argparse
import json
import secrets
import sys
import tempfile
from pathlib import Path

import msgspec

from engine.config import read_config
from engine.interface import EngineError
from engine.tokenizer import Tokenizer
from policies.document.loading import load_live_policy
from policies.document.problems import PolicyError
from services.files import keep_private, replace
from services.health import processes
from services.keys import ensure_admin_key, ensure_demo_key
from services.policy_reading import read_policy
from services.settings import Deployment, SettingsError, load_deployment

SECRET_BYTES = 32
LAST_PORT = 65535
MAKE_ADMIN_KEY = "admin key: make one with `fairlead keys add --admin`"
DEMO_PROMPT = "import os\nimport sys\n\n\ndef walk(top):\n   "
"""The demo completes Python; like most tokens of its text, the next one begins with a space."""


class SetupError(Exception):
    """The deployment cannot start as it is; the sentence says what is wrong and what to do."""


class Prepared(msgspec.Struct, frozen=True):
    """What a newcomer needs to know."""

    model_line: str
    key: str
    """The plain demo key, or empty when the operator manages keys."""
    admin_key: str
    """Of the console, in words."""

    def welcome(self, deployment: Deployment, url: str) -> str:
        """URL, key and a curl line that works when pasted."""
        key = self.key or "YOUR_KEY"
        if deployment.model == "demo":
            path, question = "completions", {"prompt": DEMO_PROMPT, "temperature": 0}
        else:
            path, question = "chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}
        body = {"model": deployment.model_name, **question, "max_tokens": 48}
        lines = [f"Fairlead serves {deployment.model_name} at {url}/v1"]
        if self.key:
            lines.append(f"API key: {self.key}")
        else:
            lines.append("API key: make one with `fairlead keys add --tenant NAME`")
        lines.append(f"Console: {url}/console ({self.admin_key})")
        headers = f"-H 'Authorization: Bearer {key}' -H 'Content-Type: application/json'"
        lines += ["Try it:", f"curl {url}/v1/{path} {headers} -d '{json.dumps(body)}'"]
        return "\n".join(lines)


def prepare(deployment: Deployment) -> Prepared:
    """Check and make everything a (resolved) deployment needs.

    Raises:
        SetupError: a folder cannot be written, the policy or tenants file is invalid or the model folder unreadable.
    """
    _load_policy(Path(deployment.policy))
    check_ports(deployment)
    try:
        for folder in (Path(deployment.data), Path(deployment.run)):
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.samefile(common) for common in ("/", tempfile.gettempdir())):
                # Made private it would be lost to everybody else on the machine.
                raise SetupError(f"{folder}: this folder is for everybody's files; name one of its own within it")
            folder.chmod(0o700)
        _ensure_secret(Path(deployment.streams.secret_file))
        model_line = _check_model(deployment)
        key = ensure_demo_key(deployment)
        admin_key = _admin_key(deployment) if key else MAKE_ADMIN_KEY
    except PolicyError as error:
        raise SetupError(_in_one_line(error)) from error
    except OSError as error:
        raise SetupError(f"{error.filename or deployment.data}: cannot be written: {error.strerror}") from error
    return Prepared(model_line=model_line, key=key, admin_key=admin_key)


def check_ports(deployment: Deployment) -> None:
    """Whether every process can have a port of its own for its metrics.

    Raises:
        SetupError: two would have the same, or one a port that there is not.
    """
    taken: dict[int, str] = {}
    for name in processes(deployment):
        port = deployment.telemetry.metrics.port_of(name)
        if not port:
            continue
        if port > LAST_PORT or port in taken:
            wrong = f"{taken[port]} has, too" if port in taken else f"is beyond the last, {LAST_PORT}"
            raise SetupError(
                f"telemetry.metrics: {name} would have port {port}, which {wrong}; each further process of a service "
                "is ten ports higher: choose others"
            )
        taken[port] = name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fairlead setup`."""
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where clients will reach the gateway")


def run(args: argparse.Namespace) -> int:
    """Prepare the deployment of the environment and say how to reach it."""
    keep_private()
    try:
        deployment = load_deployment().resolved()
        prepared = prepare(deployment)
    except (SettingsError, SetupError) as error:
        print(f"fairlead: {error}", file=sys.stderr)
        return 2
    print(prepared.model_line)
    print(prepared.welcome(deployment, args.url))
    return 0


def _admin_key(deployment: Deployment) -> str:
    secret, file = ensure_admin_key(deployment)
    if file is None:
        return MAKE_ADMIN_KEY
    return f"admin key, shown once: {secret}" if secret else f"admin key: in {file}"


def _load_policy(path: Path) -> None:
    try:
        load_live_policy(read_policy(path), str(path))
    except OSError as error:
        raise SetupError(f"policy {path} cannot be read: {error.strerror}") from error
    except PolicyError as error:
        raise SetupError(_in_one_line(error)) from error


def _in_one_line(error: PolicyError) -> str:
    first, *others = error.problems
    return f"{first} (and {len(others)} more)" if others else str(first)


def _check_model(deployment: Deployment) -> str:
    """Read what can be read without loading weights; returns the line that says which model serves."""
    folder = deployment.model_folder
    try:
        read_config(folder)
        Tokenizer.load(folder)
    except EngineError as error:
        raise SetupError(f"model: {error}") from error
    if deployment.model == "demo":
        return "Model: the demo, a small model trained on the Python standard library: it completes Python"
    return f"Model: {folder}"


def _ensure_secret(path: Path) -> None:
    # Whole or not at all: half a secret, left by a full disk, would be kept by every later start.
    if not path.exists():
        replace(path, secrets.token_bytes(SECRET_BYTES))
