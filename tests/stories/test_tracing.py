"""Every token's way from the outside: what an independent reader saw is what the parts come to, and a collector that is
down, slow or wrong is nobody's wait.
"""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed import House, fairlead

pytestmark = pytest.mark.slow

DEPLOYMENT = """
version: 1
http: {{host: 127.0.0.1, port: 0}}
telemetry: {{endpoint: "{endpoint}", metrics: {{gateway: 0, admission: null, scheduler: null, executor: null}}}}
engine: {{kind: paced, paced_step_s: {step_s}}}
"""
TOKENS = 60
STEP_S = 0.02


def deployment(folder: Path, endpoint: str = "", step_s: float = STEP_S) -> tuple[str, str]:
    file = folder / "deployment.yaml"
    file.write_text(DEPLOYMENT.format(endpoint=endpoint, step_s=step_s))
    return "--deployment", str(file)


class Reader:
    """Reads one streamed answer with a clock of its own."""

    def __init__(self, house: House, tokens: int = TOKENS) -> None:
        self.times_s: list[float] = []
        connection = http.client.HTTPConnection("127.0.0.1", house.port, timeout=60)
        body = {
            "model": "demo",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": True,
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        headers = {"authorization": f"Bearer {house.key}", "content-type": "application/json"}
        self.begun_s = time.monotonic()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        self.id = answer.headers["x-request-id"]
        while line := answer.readline():
            if line.startswith(b"data: {") and b'"content":"' in line and b'"content":""' not in line:
                self.times_s.append(time.monotonic())
        self.ended_s = time.monotonic()
        connection.close()


def story(house: House, request: str) -> dict[str, Any]:
    told = fairlead("explain", request, "--json", "--data-dir", str(house.data))
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def test_what_a_reader_waited_is_what_the_parts_come_to(house: Callable[..., House], tmp_path: Path) -> None:
    running = house(*deployment(tmp_path))
    Reader(running)  # what is done once, on the first request, is no token's latency
    readers = [Reader(running) for _ in range(4)]
    for reader in readers:
        told = story(running, reader.id)
        (choice,) = told["choices"]
        assert len(choice["written_s"]) == TOKENS
        assert sum(told["first"].values()) == pytest.approx(told["ttft_s"])
        parts_s = [sum(parts) for parts in choice["token_parts_s"]]
        assert parts_s == pytest.approx(np.diff(choice["written_s"]).tolist(), abs=0.0001)
        # The reader's clock begins before its request is sent. Whoever writes looks at its clock just after: what comes
        # next is read no earlier, however late a busy machine wakes the reader. No text is written before its step.
        assert told["ttft_s"] <= reader.times_s[1] - reader.begun_s
        assert TOKENS * STEP_S <= choice["written_s"][-1] <= reader.ended_s - reader.begun_s


def test_a_request_is_explained_and_the_house_is_looked_at_in_the_terminal(house: Callable[..., House]) -> None:
    running = house()
    reader = Reader(running, tokens=20)
    told = fairlead("explain", "last", "--data-dir", str(running.data)).stdout
    assert reader.id in told
    assert "of at most 20 output tokens; finished." in told
    assert "compute" in told
    assert "slowest of 19 tokens" in told
    unknown = fairlead("explain", "nobody", "--data-dir", str(running.data), check=False)
    assert (unknown.returncode, "no request 'nobody' is remembered" in unknown.stderr) == (2, True)
    looked = fairlead("top", "--once", "--data-dir", str(running.data)).stdout
    assert "policy fairlead@1" in looked
    assert "TTFT" in looked
    assert running.stop() == 0
    gone = fairlead("top", "--once", "--data-dir", str(running.data), check=False)
    assert (gone.returncode, "needs the services running" in gone.stderr) == (2, True)


@contextmanager
def collector(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer(self)

        def log_message(self, *arguments: object) -> None:
            del arguments

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def garbage(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\0\1\2 this is no HTTP\r\n\r\n")


def slow(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(30)
    handler.send_response(200)
    handler.end_headers()


@pytest.mark.parametrize("trouble", ["down", "slow", "garbage"])
def test_a_collector_in_trouble_costs_no_reader_anything(
    house: Callable[..., House], tmp_path: Path, trouble: str
) -> None:
    with collector(slow if trouble == "slow" else garbage) as address:
        endpoint = "http://127.0.0.1:9" if trouble == "down" else address
        running = house(*deployment(tmp_path, endpoint, step_s=0.01))
        readers = [Reader(running, tokens=100) for _ in range(3)]
        for reader in readers:
            (choice,) = running.get(f"/v1/fairlead/requests/{reader.id}")["choices"]
            assert len(choice["written_s"]) == 100
        log = (running.data / "logs" / "gateway.log").read_text()
        assert running.stop() == 0
    assert (
        trouble == "slow"
        or "serving is not affected" in log
        or "serving is not affected" in (running.data / "logs" / "gateway.log").read_text()
    )
