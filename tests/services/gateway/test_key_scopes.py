"""What a key opens: an admin key looks on and asks no model, a tenant's key asks and sees no other tenant."""

import asyncio
from typing import Any

import aiohttp
import pytest

INFERENCE = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages")


@pytest.mark.parametrize("path", INFERENCE)
async def test_an_admin_key_asks_no_model(stage: Any, admin_key: str, path: str) -> None:
    status, answer, _ = await stage.post(path, stage.chat(), authorization=f"Bearer {admin_key}")
    assert status == 403
    assert answer["error"]["type"] == "permission_error"
    assert "this is an admin key: it opens the console and asks no model" in answer["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/demo", "/v1/fairlead/policy"])
async def test_what_is_no_secret_is_told_to_any_key(stage: Any, admin_key: str, path: str) -> None:
    for key in ("fl-test-key", admin_key):
        status, _, _ = await stage.get(path, key)
        assert status == 200


async def test_a_revoked_key_is_answered_as_one_that_never_was_and_only_the_metric_tells(stage: Any) -> None:
    answers = [await stage.get("/v1/models", key) for key in ("fl-test-revoked", "fl-never-was")]
    assert [(status, body) for status, body, _ in answers] == [(401, answers[0][1])] * 2
    names = [{name.lower() for name in headers} for _, _, headers in answers]
    assert names[0] == names[1]
    await stage.get("/v1/models", "")
    await stage.get("/v1/fairlead/live")
    assert stage.gateway._keys.num_refused == {"missing": 1, "unknown": 1, "revoked": 1, "wrong_scope": 1}


async def test_a_key_revoked_while_it_looks_on_sees_no_more(stage: Any, admin_key: str) -> None:
    path = stage.folder / "tenants.yaml"
    async with (
        aiohttp.ClientSession(headers={"authorization": f"Bearer {admin_key}"}) as session,
        session.get(f"{stage.url}/v1/fairlead/live") as answer,
    ):
        await answer.content.readuntil(b"\n\n")
        path.write_text(path.read_text().replace("scope: admin", "scope: admin, revoked: true"))
        assert stage.gateway._keys.refresh() == ""
        async with asyncio.timeout(10):
            await answer.read()
    assert (await stage.get("/v1/fairlead/live", admin_key))[0] == 401
