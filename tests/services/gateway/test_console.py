"""The console's page and what it asks for; admission and scheduler are played."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from policies.document.tenants import digest
from services.crashes import Crashes
from services.gateway import live
from services.wire import Capacity, PolicyNow
from services.wire_parts import Levels
from tests.services.gateway.conftest import Setup

CHAT = "/v1/chat/completions"
traced = pytest.mark.parametrize("stage", [Setup(tracing=True)], indirect=True)


async def raw(stage: Any, path: str, **headers: str) -> tuple[int, bytes, Any]:
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.get(stage.url + path, headers=headers) as answer,
    ):
        return answer.status, await answer.read(), answer.headers


@asynccontextmanager
async def following(stage: Any, key: str) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
    """The events of the live stream."""
    headers = {"authorization": f"Bearer {key}"}
    async with (
        aiohttp.ClientSession(headers=headers, read_bufsize=2**20) as session,
        session.get(f"{stage.url}/v1/fairlead/live") as answer,
    ):
        assert answer.content_type == "text/event-stream", await answer.text()

        async def events() -> AsyncIterator[tuple[str, Any]]:
            while line := await answer.content.readline():
                data = await answer.content.readline()
                assert await answer.content.readline() == b"\n"
                yield line.decode().strip().removeprefix("event: "), msgspec.json.decode(data.removeprefix(b"data: "))

        yield events()


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/console", "text/html"),
        ("/console/app.js", "text/javascript"),
        ("/console/console.css", "text/css"),
        ("/console/plotly.min.js", "text/javascript"),
    ],
)
async def test_the_page_comes_without_a_key_and_runs_nothing_from_elsewhere(stage: Any, path: str, kind: str) -> None:
    status, body, headers = await raw(stage, path)
    assert status == 200
    assert headers["content-type"] == f"{kind}; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert "script-src" not in policy
    assert policy["frame-ancestors"] == "'none'"
    assert b"http://" not in body.replace(b"http://www.w3.org", b"") or path.endswith("plotly.min.js")


async def test_a_browser_that_has_the_newest_copy_is_told_so(stage: Any) -> None:
    _, whole, headers = await raw(stage, "/console/plotly.min.js", **{"accept-encoding": "identity"})
    status, body, _ = await raw(stage, "/console/plotly.min.js", **{"if-none-match": headers["etag"]})
    assert (status, body) == (304, b"")
    _, packed, headers = await raw(stage, "/console/plotly.min.js", **{"accept-encoding": "gzip"})
    assert headers["content-encoding"] == "gzip"
    assert len(packed) < len(whole) / 2


@pytest.mark.parametrize("name", ["console_api.py", "..%2Fauth.py", "%2e%2e%2fauth.py", "nothing.js", "sub/app.js"])
async def test_only_the_pages_files_are_there(stage: Any, name: str) -> None:
    status, body, _ = await raw(stage, f"/console/{name}")
    assert status == 404
    assert msgspec.json.decode(body)["error"]["code"] == "not_found"


def test_every_file_of_the_page_names_only_files_that_exist() -> None:
    folder = Path(live.__file__).with_name("console")
    page = (folder / "index.html").read_text()
    assert "<script>" not in page
    assert " on" not in "".join(part for part in page.split("<") if "=" in part and ' on"' in part)
    for name in ("ring.svg", "console.css", "app.js"):
        assert f"console/{name}" in page
        assert (folder / name).exists()
    for script in folder.glob("*.js"):
        assert "innerHTML" not in script.read_text(), "what tenants are called would become markup"


# --- who may see what -------------------------------------------------------------------------------------------------


async def test_the_live_stream_needs_an_admin_key(stage: Any) -> None:
    status, answer, _ = await stage.get("/v1/fairlead/live")
    assert status == 403
    assert answer["error"]["code"] == "wrong_key_scope"
    assert "fairlead keys add --admin" in answer["error"]["message"]
    status, _, _ = await stage.get("/v1/fairlead/live", key="")
    assert status == 401


@traced
async def test_a_tenant_sees_its_own_requests_and_an_operator_all(stage: Any, admin_key: str) -> None:
    stage.says("def add(a, b)")
    _, answer, _ = await stage.post(CHAT, stage.chat())
    tenants = stage.folder / "tenants.yaml"
    other = f"  - {{name: globex, keys: [{{id: g, sha256: {digest('fl-globex')}}}]}}\n"
    tenants.write_text(tenants.read_text() + other)
    path = f"/v1/fairlead/requests/{answer['id']}"
    for key, expected in (("fl-test-key", 200), (admin_key, 200), ("fl-globex", 404)):
        status, document, _ = await stage.get(path, key)
        assert status == expected
        if expected == 200:
            assert (document["id"], document["tenant"]) == (answer["id"], "acme")
            assert len(document["choices"][0]["written_s"]) == document["output_tokens"]
        else:
            assert "no request" in document["error"]["message"]
        _, listed, _ = await stage.get("/v1/fairlead/requests?tenant=acme", key)
        assert [line["id"] for line in listed["requests"]] == ([answer["id"]] if expected == 200 else [])


@traced
async def test_recent_requests_are_filtered(stage: Any, admin_key: str) -> None:
    stage.says("x")
    await stage.post(CHAT, stage.chat())
    for query, number in (("", 1), ("class=all", 1), ("class=none", 0), ("tenant=none", 0), ("missed=true", 0)):
        _, listed, _ = await stage.get(f"/v1/fairlead/requests?{query}", admin_key)
        assert len(listed["requests"]) == number, query
    status, answer, _ = await stage.get("/v1/fairlead/requests?missed=perhaps", admin_key)
    assert status == 400
    assert answer["error"]["message"] == "missed: 'perhaps' is neither true nor false"


@pytest.mark.parametrize("stage", [Setup(tracing=True, http={"gateways": 2})], indirect=True)
async def test_a_gateway_of_which_nothing_is_known_is_named_where_a_request_is_not_found(
    stage: Any, admin_key: str
) -> None:
    status, answer, _ = await stage.get("/v1/fairlead/requests/nobody", admin_key)
    assert status == 404
    assert answer["error"]["message"].endswith("too long ago; gateway-2 is not there, and may know it")
    _, recent, _ = await stage.get("/v1/fairlead/requests", admin_key)
    assert recent == {"requests": [], "silent": {"gateway-2": "is not there"}}


@traced
async def test_a_keeper_that_ended_is_not_shown_as_a_gateway_without_work(stage: Any, admin_key: str) -> None:
    # Neither another look nor another keeper comes between.
    stage.gateway.api.live._task.cancel()
    stage.gateway.keeper._crashes = Crashes(0, 60.0)
    stage.gateway.keeper._process.kill()
    stage.gateway.keeper._process.wait()
    await stage.gateway.api.live.look()
    async with following(stage, admin_key) as events:
        await anext(events)
        _, now = await anext(events)
    assert now["num_running"] is None
    assert "the keeper of traces" in now["telemetry"]["trouble"]


async def test_without_traces_the_answer_says_which_setting_brings_them(stage: Any, admin_key: str) -> None:
    for path in ("/v1/fairlead/requests", "/v1/fairlead/requests/any"):
        status, answer, _ = await stage.get(path, admin_key)
        assert status == 404
        assert "telemetry.tokens in deployment.yaml" in answer["error"]["message"]


# --- what is live -----------------------------------------------------------------------------------------------------


@traced
async def test_what_happened_is_told_and_remembered_for_who_comes_later(stage: Any, admin_key: str) -> None:
    # Looked at by nobody else: a look between a level and ours would find no step since.
    stage.gateway.api.live._task.cancel()
    stage.says("def add(a, b)")
    await stage.post(CHAT, stage.chat())
    stage.backstage.send("admission", Capacity(1, 4096, 512, levels=Levels(queued={"all": 3})))
    for num_steps in (10, 20):
        levels = Levels(blocks=256, used_blocks=64, num_steps=num_steps, step_s=num_steps / 100, num_waiting=2)
        stage.backstage.send("scheduler", Capacity(1, 4096, 512, levels=levels))
        backend = stage.gateway.api._console._live._backend
        while backend.levels.get("scheduler") != levels or "admission" not in backend.levels:  # noqa: ASYNC110  on a socket
            await asyncio.sleep(0)
        await stage.gateway.api.live.look()
    async with following(stage, admin_key) as events:
        kind, points = await anext(events)
        assert kind == "history"
        assert len(points) >= 2
        kind, now = await anext(events)
        await stage.gateway.api.live.look()
        assert (await anext(events))[0] == "now"
    assert kind == "now"
    assert now["point"]["queued"] == {"all": 3}
    assert now["point"]["kv"] == {"used": 64, "blocks": 256, "tokens": 0}
    assert now["point"]["sequences"]["waiting"] == 2
    assert now["point"]["steps"]["mean_s"] == pytest.approx(0.01)
    assert (now["policy"]["name"], now["promises"]) == ("simple", [["all", 1.0, 1.0]])
    assert now["telemetry"]["traced"]
    assert now["telemetry"]["dropped"]["unread_records"] == 0
    assert (now["telemetry"]["trouble"], now["silent"]) == ("", {})
    assert now["missing"] == []


async def test_a_scheduler_that_counts_from_nought_again_gives_no_negative_rate(stage: Any) -> None:
    backend = stage.gateway.api.live._backend
    for num_steps, expected in ((10, None), (15, True), (2, None)):
        backend.levels["scheduler"] = Levels(num_steps=num_steps, step_s=num_steps / 100)
        assert (stage.gateway.api.live._levels()["steps"] is not None) == bool(expected)


async def test_the_last_change_of_the_policy_is_told_in_words(stage: Any, admin_key: str) -> None:
    changed = b"""
version: 1
name: simple
classes: [{name: all, ttft_s: 2, tbt_s: 1}]
batching: {stages: [{decode: {}}, {prefill: {from: waiting}}]}
"""
    stage.backstage.send("admission", PolicyNow(2, changed))
    while stage.gateway.api.live._backend.revisions.now.revision != 2:  # noqa: ASYNC110  on a socket
        await asyncio.sleep(0)
    await stage.gateway.api.live.look()
    async with following(stage, admin_key) as events:
        await anext(events)
        _, now = await anext(events)
    assert now["policy"]["revision"] == 2
    assert any("ttft_s" in change for change in now["policy"]["changes"])
    assert [each["revision"] for each in now["earlier"]] == [1]
    assert now["telemetry"]["traced"] is False


async def test_history_is_bounded(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    look = stage.gateway.api.live
    for _ in range(live.HISTORY_S + 10):
        await look.look()
    assert len(look._points) == live.HISTORY_S


async def test_a_gateway_that_stops_ends_the_stream_at_once(stage: Any, admin_key: str) -> None:
    async with following(stage, admin_key) as events:
        await anext(events)
        stage.gateway.api.live.close()
        assert [kind async for kind, _ in events if kind != "now"] == []
