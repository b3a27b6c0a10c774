"""Arize Phoenix for the stories: a backend of OTLP that is not ours, in an environment of its own."""

import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from deployed import ROOT, free_port

PHOENIX = Path(os.environ.get("FAIRLEAD_PHOENIX") or ROOT / ".venv-phoenix") / "bin" / "phoenix"
START_S = 120.0
PAGE_SPANS = 1000
POLL_S = 0.2
SETTINGS = {
    "PHOENIX_HOST": "127.0.0.1",
    "PHOENIX_TELEMETRY_ENABLED": "false",
    "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
}
PROJECT = "openinference.project.name"
"""Of a resource: the project its spans are kept in."""


class Context(msgspec.Struct):
    """Who a span is."""

    trace_id: str
    span_id: str


class Span(msgspec.Struct):
    """A span as the backend gives it back."""

    name: str
    context: Context
    start_time: str
    end_time: str
    status_code: str
    status_message: str
    attributes: dict[str, Any]
    parent_id: str | None = None


class Page(msgspec.Struct):
    """Some spans, and where the next ones begin."""

    data: list[Span]
    next_cursor: str | None


class Backend:
    """One that runs; what it keeps is lost with its folder."""

    def __init__(self) -> None:
        self.port, self.grpc_port = free_port(), free_port()
        self.endpoints = {"http": f"http://127.0.0.1:{self.port}", "grpc": f"grpc://127.0.0.1:{self.grpc_port}"}

    def get(self, path: str, **query: str) -> bytes:
        url = f"{self.endpoints['http']}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            body: bytes = answer.read()
        return body

    def spans(self, project: str) -> list[Span]:
        """All spans of a project; none if nothing of it came yet."""
        found: list[Span] = []
        query = {"limit": str(PAGE_SPANS)}
        while True:
            try:
                page = msgspec.json.decode(self.get(f"/v1/projects/{project}/spans", **query), type=Page)
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return []
                raise
            found += page.data
            if page.next_cursor is None:
                return found
            query["cursor"] = page.next_cursor


@contextmanager
def phoenix(folder: Path) -> Iterator[Backend]:
    """Start one that keeps its spans in this folder; stop it."""
    backend = Backend()
    ports = {"PHOENIX_PORT": str(backend.port), "PHOENIX_GRPC_PORT": str(backend.grpc_port)}
    log = folder / "phoenix.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [PHOENIX, "serve"],
            env={**os.environ, **SETTINGS, **ports, "PHOENIX_WORKING_DIR": str(folder)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + START_S
        while not _healthy(backend):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(POLL_S)
        yield backend
    finally:
        process.terminate()
        process.wait(30)


def _healthy(backend: Backend) -> bool:
    try:
        backend.get("/healthz")
    except OSError:
        return False
    return True
