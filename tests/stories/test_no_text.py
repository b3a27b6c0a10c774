"""What tenants say, what they are answered and their keys are in no log, trace, metric or file, whatever happens."""

import base64
import http.client
import json
import os
import signal
import threading
import urllib.request
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from deployed import ROOT, House, free_port

from engine.demo import CHECKPOINT
from engine.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

TRACING = "\ntracing: {tokens: array, spans_for: {slo_miss: 1.0, error: 1.0, otherwise: 1.0}}\n"
"""Of every request."""
SERVICES = ("gateway", "admission", "scheduler", "executor")
SAID = {
    what: f"zqx{what}vantablack"
    for what in (
        "prompt",
        "system",
        "turn",
        "argument",
        "result",
        "schema",
        "completion",
        "stop",
        "user",
        "field",
        "model",
        "header",
        "path",
        "query",
        "key",
        "broken",
        "embedded",
    )
}
"""What is said where; each must be found nowhere else."""
ANSWER = {
    "type": "object",
    "properties": {SAID["schema"]: {"enum": [SAID["completion"]]}},
    "required": [SAID["schema"]],
}
ASKED = [{"role": "system", "content": SAID["system"]}, {"role": "user", "content": SAID["turn"]}]
FUNCTION = {"name": "look", "parameters": {"type": "object", "properties": {"at": {"const": SAID["schema"]}}}}
CALLED = {"name": "look", "arguments": json.dumps({"at": SAID["argument"]})}
CONVERSATION = [
    *ASKED,
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": CALLED}]},
    {"role": "tool", "tool_call_id": "1", "content": SAID["result"]},
]
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER}}
HOSTILE = {"description": SAID["schema"], "allOf": [{"type": "integer", "multipleOf": each} for each in (9973, 9967)]}
"""Takes minutes to compile."""
CHAT, COMPLETIONS, MESSAGES, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/embeddings"


class Collector:
    """Keeps every byte that it is sent."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.received.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


class Client:
    """Asks with a key, and reads what it is answered."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json", "x-said": SAID["header"]}
        self.heard = ""

    def ask(self, path: str, body: Any, method: str = "POST", **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, self._headers | headers)
        answer = connection.getresponse()
        self.heard += answer.read().decode(errors="replace")
        connection.close()
        return answer.status


def traces_of(said: str, tokenizer: Tokenizer) -> list[bytes]:
    """How a text could be found in a file: as it is, in base64 or as token ids."""
    ids = tokenizer.encode(said, add_special_tokens=False)
    wide = [array("i", ids).tobytes(), array("q", ids).tobytes()]
    listed = [separator.join(map(str, ids)).encode() for separator in (",", ", ", "\n- ")]
    return [said.encode(), base64.b64encode(said.encode()).rstrip(b"=")[:-2], *wide, *listed]


def test_no_text_and_no_key_is_in_any_file_log_trace_or_metric(
    house: Callable[..., House], collector: Collector, tmp_path: Path
) -> None:
    ports = {service: free_port() for service in SERVICES}
    file = tmp_path / "deployment.yaml"
    endpoint = f"http://127.0.0.1:{collector.server.server_port}"
    telemetry = {"endpoint": endpoint, "metrics": ports}
    file.write_text(json.dumps({"version": 1, "http": {"port": 0}, "telemetry": telemetry}))
    policy, records = tmp_path / "traced.yaml", tmp_path / "records"
    policy.write_text((ROOT / "policies" / "fairlead.yaml").read_text() + TRACING)
    running = house("--deployment", str(file), "--record", str(records), "--policy", str(policy))
    key = running.add_key("acme", "paid")
    client = Client(running.port, key)

    for service in SERVICES:
        limits = Path(f"/proc/{running.pid(service)}/limits").read_text()
        [cores] = [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core file size")]
        assert cores == ["0", "0"], f"a crash of the {service} would write what it has in memory"
    talk(client)
    kill_while_it_serves(running, client, "scheduler")
    assert SAID["completion"] in client.heard  # or this test would look for what was never there
    recent = running.get("/v1/fairlead/requests", key)["requests"]
    assert recent
    stories = [running.get(f"/v1/fairlead/requests/{each['id']}", key) for each in recent]
    shown = json.dumps([recent, stories, running.get("/v1/fairlead/usage", key)]).encode()
    shown += b"".join(read(f"http://127.0.0.1:{port}/metrics") for port in ports.values())
    kill_while_it_serves(running, client, "gateway")
    running.stop()

    places = {"metrics, traces and usage": shown, "the terminal": running.text.encode()}
    places |= {f"export {number}": data for number, data in enumerate(collector.received)}
    found = [path for folder in (tmp_path, running.data) for path in folder.rglob("*") if path.is_file()]
    places |= {str(path): path.read_bytes() for path in found}
    assert len(collector.received) > 2
    assert any("records" in place for place in places)
    assert any(place.endswith(".sqlite") for place in places)
    tokenizer = Tokenizer.load(CHECKPOINT)
    secrets = {what: traces_of(said, tokenizer) for what, said in SAID.items()} | {"the key": [key.encode()]}
    leaks = [
        f"{what} in {place}"
        for place, data in places.items()
        for what, forms in secrets.items()
        if any(form in data for form in forms)
    ]
    assert leaks == []


def talk(client: Client) -> None:
    """Through success, refusals and what cannot be read."""
    more = {"model": "demo", "max_tokens": 24, "user": SAID["user"]}
    stops = {"stop": [SAID["stop"]]}
    statuses = [
        client.ask(CHAT, {"messages": ASKED, "response_format": FORM, **more, "max_tokens": 60}),
        client.ask(CHAT, {"messages": ASKED, "response_format": FORM, "stream": True, **more, "max_tokens": 60}),
        client.ask(CHAT, {"messages": CONVERSATION, "tools": [{"type": "function", "function": FUNCTION}], **more}),
        client.ask(COMPLETIONS, {"prompt": SAID["prompt"], "logprobs": 3, **stops, **more}),
        client.ask(MESSAGES, {"model": "demo", "max_tokens": 8, "messages": ASKED[1:], "system": SAID["system"]}),
        client.ask(EMBEDDINGS, {"model": "demo", "input": SAID["embedded"]}),
        client.ask(f"{MESSAGES}/count_tokens", {"model": "demo", "messages": ASKED[1:]}),
    ]
    assert statuses == [200] * 7
    refused = [
        client.ask(CHAT, f'{{"broken": "{SAID["broken"]}'.encode()),
        client.ask(CHAT, {"model": SAID["model"], "messages": ASKED}),
        client.ask(CHAT, {"messages": ASKED, SAID["field"]: 1, **more}),
        client.ask(CHAT, {"messages": [{"role": SAID["turn"], "content": SAID["turn"]}], **more}),
        client.ask(CHAT, {"messages": ASKED, **more, "max_tokens": 10**6}),
        client.ask(
            CHAT,
            {"messages": ASKED, **more, "response_format": {**FORM, "json_schema": {"name": "a", "schema": HOSTILE}}},
        ),
        client.ask(COMPLETIONS, {"prompt": SAID["prompt"] * 100_000, **more}),
        client.ask(COMPLETIONS, SAID["broken"].encode(), **{"content-encoding": "gzip"}),
        client.ask(f"/v1/{SAID['path']}?a={SAID['query']}", b"", method="GET"),
        client.ask(f"/v1/fairlead/requests/{SAID['path']}", b"", method="GET"),
        client.ask(CHAT, {"messages": ASKED, **more}, authorization=f"Bearer {SAID['key']}"),
        client.ask(CHAT, {"messages": ASKED, **more}, expect=SAID["header"]),
    ]
    assert [status for status in refused if not 400 <= status < 500] == [], refused


def kill_while_it_serves(running: House, client: Client, service: str) -> None:
    """With what it was asked in its memory."""
    body = {"model": "demo", "prompt": SAID["prompt"], "max_tokens": 200, "ignore_eos": True}

    def ask() -> None:
        with suppress(ConnectionError, http.client.HTTPException):  # the gateway's connections are lost with it
            client.ask(COMPLETIONS, body)

    asking = threading.Thread(target=ask)
    asking.start()
    running.wait_until("/readyz", lambda answer: answer["requests"] == 1)
    pid = running.pid(service)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    asking.join(60)


def read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        data: bytes = answer.read()
    return data
