"""How the commands of an operator ask a running gateway: where it is, and with which key.

Owns one GET and the sentence when it does not work.
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

from services import policy_documents
from services.files import read_document
from services.policy_documents import CommandError
from services.settings import Deployment

TIMEOUT_S = 10.0
ADMIN_KEY_FILE = "admin.key"
STDIN = "-"


def add_gateway(parser: argparse.ArgumentParser) -> None:
    """The options that say which gateway is meant, and who asks."""
    parser.add_argument("--url", metavar="URL", help="the gateway (the one of the data folder)")
    # Not the key itself: everybody on the machine can read the arguments of a process.
    parser.add_argument(
        "--key-file", metavar="FILE", help="holds an admin key (admin.key of the data folder); -: the standard input"
    )
    policy_documents.add_data_dir(parser)


def fetch(deployment: Deployment, args: argparse.Namespace, path: str) -> Any:
    """The JSON document at a path.

    Raises:
        CommandError: the gateway cannot be reached, or says why not.
    """
    with _open(deployment, args, path) as answer:
        return json.load(answer)


def events(deployment: Deployment, args: argparse.Namespace, path: str) -> Iterator[tuple[str, Any]]:
    """Kind and document of each server-sent event at a path, until the gateway ends; errors as `fetch`."""
    kind = "message"
    with _open(deployment, args, path) as answer:
        for line in answer:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                yield kind, json.loads(value)


def _open(deployment: Deployment, args: argparse.Namespace, path: str) -> HTTPResponse:
    url = (args.url or _url(deployment)).rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise CommandError(f"--url {url}: an address begins with http:// or https://")
    headers = {"authorization": f"Bearer {_key(deployment, args.key_file)}"}
    request = urllib.request.Request(url + path, headers=headers)  # noqa: S310  checked above
    try:
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310  checked above
    except urllib.error.HTTPError as error:
        raise CommandError(_said(error)) from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise CommandError(f"no gateway at {url}: {reason}; this needs the services running") from error
    return answer


def _url(deployment: Deployment) -> str:
    host = deployment.http.host
    return f"http://{'127.0.0.1' if host in ('', '0.0.0.0') else host}:{deployment.http.port}"  # noqa: S104  to reach it


def _key(deployment: Deployment, named: str | None) -> str:
    if named == STDIN:
        return _checked("the standard input", sys.stdin.buffer.readline())
    file = Path(named or Path(deployment.data) / ADMIN_KEY_FILE)
    try:
        return _checked(str(file), read_document(file))
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}; name a file with an admin key with --key-file") from error


def _checked(source: str, content: bytes) -> str:
    """A key, which goes into a header."""
    key = content.decode(errors="replace").strip()
    if not (key.isascii() and key.isprintable() and key):
        raise CommandError(f"{source}: holds no key; a line with one is needed, as `fairlead keys add` prints it")
    return key


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the gateway answered {error.code}"
