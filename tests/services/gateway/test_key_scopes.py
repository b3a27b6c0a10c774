"""What a key opens: an admin key looks on and asks no model, a tenant's key asks and sees no other tenant."""

from typing import Any

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
