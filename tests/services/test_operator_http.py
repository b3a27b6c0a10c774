"""With which key an operator's command asks: never one of its arguments, which all users of the machine can read."""

import argparse
import io
import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from services import operator_http
from services.policy_documents import CommandError
from services.settings import Deployment


class Echo(BaseHTTPRequestHandler):
    """Answers with the key that it was given."""

    def do_GET(self) -> None:
        body = json.dumps(self.headers["authorization"]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Echo)
    Thread(target=server.serve_forever, args=(0.01,)).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def asked(data: Path, url: str, *words: str) -> str:
    parser = argparse.ArgumentParser()
    operator_http.add_gateway(parser)
    args = parser.parse_args(["--url", url, *words])
    return operator_http.fetch(Deployment(data=str(data)), args, "/")


def test_a_command_asks_with_a_key_that_a_file_or_a_pipe_holds(tmp_path, url, monkeypatch) -> None:
    (tmp_path / "admin.key").write_text("fl-admin-folder\n")
    (tmp_path / "other.key").write_text("fl-admin-other\n")
    assert asked(tmp_path, url) == "Bearer fl-admin-folder"
    assert asked(tmp_path, url, "--key-file", str(tmp_path / "other.key")) == "Bearer fl-admin-other"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"fl-admin-piped\n")))
    assert asked(tmp_path, url, "--key-file", "-") == "Bearer fl-admin-piped"


@pytest.mark.parametrize("content", [b"", b"a\nb", b"\xff", b"fl\r\nhost: x"])
def test_a_file_that_holds_no_key_is_named(tmp_path, url, content: bytes) -> None:
    (tmp_path / "admin.key").write_bytes(content)
    with pytest.raises(CommandError, match=r"admin\.key: holds no key; a line with one is needed"):
        asked(tmp_path, url)
    with pytest.raises(CommandError, match="none: No such file or directory; name a file with an admin key"):
        asked(tmp_path, url, "--key-file", str(tmp_path / "none"))
