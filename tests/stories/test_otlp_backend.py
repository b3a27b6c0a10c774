"""What is exported is taken and given back whole by a backend of OTLP that is not ours: Arize Phoenix.

It keeps names, times, parents, status and attributes of spans. Of their links, and of who wrote them, it keeps nothing:
`tests/services/telemetry/test_keeper_link.py` reads those.
"""

import json
import secrets
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from deployed import ROOT, House
from phoenix import PHOENIX, PROJECT, Backend, Span, phoenix

from services.telemetry import names
from services.telemetry.keeper.arrays import unpack
from services.telemetry.stamps import CAUSES, TOKEN_PARTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PHOENIX.exists(), reason=f"no {PHOENIX}: ops/otel/phoenix.sh installs it"),
    pytest.mark.timeout(300),
]

DEPLOYMENT = """
version: 1
http: {{host: 127.0.0.1, port: 0}}
telemetry: {{endpoint: "{endpoint}", metrics: {{gateway: 0, admission: null, scheduler: null, executor: null}}}}
engine: {{kind: paced, paced_step_s: 0.01}}
"""
POLICY = """
tracing: {spans_for: {otherwise: 1.0}}
limits: [{scope: key, dimension: output_tokens, rate_per_min: 100000, burst: 100}]
"""
CLIENT_SPAN = "00f067aa0ba902b7"
TAKEN_S = 30.0
ROUNDED_S = 2e-6
"""It keeps microseconds."""


class Asked(NamedTuple):
    """A request and what came of it."""

    id: str
    output_tokens: int
    """0: refused."""
    num_choices: int


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with phoenix(tmp_path_factory.mktemp("phoenix")) as running:
        yield running


def ask(house: House, words: str = "Hi", traceparent: str = "", **body: Any) -> Asked:
    """A chat. Raises `HTTPError` if it is refused."""
    body = {"model": "demo", "messages": [{"role": "user", "content": words}], "ignore_eos": True, **body}
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}
    headers = {"authorization": f"Bearer {house.key}", "content-type": "application/json"}
    if traceparent:
        headers["traceparent"] = traceparent
    request = urllib.request.Request(f"{house.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
    if body.get("stream"):
        *_, text = (line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {"))
    return Asked(answer.headers["x-request-id"], json.loads(text)["usage"]["completion_tokens"], body.get("n", 1))


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_every_request_is_one_whole_tree_in_a_backend_that_is_not_ours(
    house: Callable[..., House], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend, transport: str
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", f"{PROJECT}={transport}")
    deployment, policy = tmp_path / "deployment.yaml", tmp_path / "traced.yaml"
    deployment.write_text(DEPLOYMENT.format(endpoint=backend.endpoints[transport]))
    policy.write_text((ROOT / "policies" / "fairlead.yaml").read_text() + POLICY)
    running = house("--deployment", str(deployment), "--policy", str(policy))
    trace, of_refused = secrets.token_hex(16), secrets.token_hex(16)
    asked = [
        ask(running, max_tokens=40, stream=True),
        ask(running, max_tokens=30),
        ask(running, max_tokens=10, n=2),
        ask(running, "the sea " * 600, max_tokens=5),
        ask(running, max_tokens=20, stream=True, traceparent=f"00-{trace}-{CLIENT_SPAN}-01"),
    ]
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(running, max_tokens=500, traceparent=f"00-{of_refused}-{CLIENT_SPAN}-01")
    asked.append(Asked(refused.value.headers["x-request-id"], 0, 1))
    refused.value.close()
    assert running.stop() == 0

    # What was sent is taken at once and written down a little later.
    deadline = time.monotonic() + TAKEN_S
    while (wrong := wrongs(spans := backend.spans(transport), asked)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not wrong, "\n".join([*wrong, f"of {Counter(span.name for span in spans)}"])
    roots = {one.context.trace_id: one for one in spans if one.parent_id == CLIENT_SPAN}
    assert [roots[of].attributes[names.OUTCOME] for of in (trace, of_refused)] == ["finished", "refused"]
    assert "the collector did not take traces" not in (running.data / "logs" / "gateway.log").read_text()


def wrongs(spans: list[Span], asked: list[Asked]) -> list[str]:
    """What is missing, too much or not as it was sent."""
    steps = [span for span in spans if span.name == names.STEP]
    ids = {(span.context.trace_id, span.context.span_id) for span in spans}
    wrong = [
        f"an orphan: {span.name} of {span.parent_id}"
        for span in spans
        if span.parent_id not in (None, CLIENT_SPAN) and (span.context.trace_id, span.parent_id) not in ids
    ]
    wrong += [f"twice: {len(spans) - len(ids)} spans"] * (len(spans) != len(ids))
    roots = {span.attributes.get(names.GENAI_RESPONSE_ID): span for span in spans if span.name == "chat demo"}
    wrong += [f"no tree of {one.id}" for one in asked if one.id not in roots]
    wrong += [f"{len(roots)} roots for {len(asked)} requests"] * (len(roots) != len(asked))
    for one in asked:
        if one.id in roots:
            mine = [span for span in spans if span.context.trace_id == roots[one.id].context.trace_id]
            wrong += [f"{one.id}: {what}" for what in wrongs_of_tree(roots[one.id], mine, one)]
    been_in = {span.attributes[names.STEP_NUMBER] for span in spans if span.name in (names.CHUNK, names.TOKEN)}
    sizes = (names.STEP_PREFILL_TOKENS, names.STEP_DECODE_TOKENS)
    wrong += [f"empty: {span}" for span in steps if not any(span.attributes.get(size) for size in sizes)]
    told = Counter(span.attributes.get(names.STEP_NUMBER) for span in steps)
    if told != Counter(been_in):
        wrong.append(f"steps told {sorted(told.elements(), key=str)}, been in {sorted(been_in)}")
    return wrong


def wrongs_of_tree(root: Span, spans: list[Span], asked: Asked) -> list[str]:
    """The same of one request; `spans`: its trace's."""
    of_parent: dict[str | None, Counter[str]] = {}
    for span in spans:
        of_parent.setdefault(span.parent_id, Counter())[span.name] += 1
    below = of_parent.get(root.context.span_id, Counter())
    if not asked.output_tokens:
        whole = (Counter([names.TOKENIZE]), "refused", "request_exceeds_limit")
        got = (below, root.attributes[names.OUTCOME], root.attributes[names.ERROR_TYPE])
        return [] if got == whole and len(spans) == 2 else [f"a refused request is {got} in {len(spans)} spans"]
    each = [names.QUEUE, names.PREFILL, names.DECODE, names.DELIVER]
    wrong = []
    if below != Counter([names.TOKENIZE, names.ADMISSION, *each * asked.num_choices]):
        wrong.append(f"below its root is {below}")
    for name, value in {
        names.GENAI_OPERATION: "chat",
        names.GENAI_REQUEST_MODEL: "demo",
        names.GENAI_OUTPUT_TOKENS: asked.output_tokens,
        names.GENAI_CHOICES: asked.num_choices,
        names.OUTCOME: "finished",
        names.POLICY_NAME: "fairlead",
        names.POLICY_REVISION: 1,
    }.items():
        if root.attributes.get(name) != value:
            wrong.append(f"{name} is {root.attributes.get(name)}, not {value}")
    wrong += [f"no {name}" for name in (names.TENANT, names.CLASS, names.KEPT) if not root.attributes.get(name)]
    for span in spans:
        children = of_parent.get(span.context.span_id, Counter())
        if span.name == names.PREFILL and children != {names.CHUNK: span.attributes[names.NUM_CHUNKS]}:
            wrong.append(f"below its prefill is {children}")
        if span.name == names.DECODE:
            tokens = [one for one in spans if one.parent_id == span.context.span_id]
            wrong += wrongs_of_tokens(span, tokens, asked.output_tokens // asked.num_choices)
    return wrong


def wrongs_of_tokens(decode: Span, tokens: list[Span], num_got: int) -> list[str]:
    """The same of one choice: a span for each token after the first, without a gap between them."""
    tokens = sorted(tokens, key=lambda token: token.attributes[names.INDEX])
    wrong = []
    if [token.attributes[names.INDEX] for token in tokens] != list(range(1, num_got)):
        wrong.append(f"{len(tokens)} token spans for {num_got} tokens")
    if len(unpack(decode.attributes[names.TOKENS])) != num_got:
        wrong.append(f"{decode.attributes[names.TOKENS]} are not the stamps of {num_got} tokens")
    if any(one.end_time != after.start_time for one, after in pairwise(tokens)):
        wrong.append("tokens do not follow on each other")
    for token in tokens:
        took_s = (datetime.fromisoformat(token.end_time) - datetime.fromisoformat(token.start_time)).total_seconds()
        parts_s = sum(token.attributes[names.PART.format(part)] for part in TOKEN_PARTS)
        if token.name != names.TOKEN or token.attributes[names.CAUSE] not in CAUSES:
            wrong.append(f"no token: {token}")
        if abs(took_s - parts_s) > ROUNDED_S:
            wrong.append(f"a token of {took_s} s has parts of {parts_s} s")
    return wrong
