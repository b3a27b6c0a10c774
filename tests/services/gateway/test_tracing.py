"""What the keeper knows of a request after it went through a gateway: all of its tokens, in the client's trace."""

from typing import Any

import msgspec
import pytest

from policies.commands import FinishReason
from services.wire import Refused, Submit
from tests.services.gateway.conftest import Setup

CHAT = "/v1/chat/completions"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

pytestmark = pytest.mark.parametrize("stage", [Setup(tracing=True)], indirect=True)


async def stories(stage: Any, number: int) -> list[dict[str, Any]]:
    """Of the last requests, the newest first."""
    keeper = stage.gateway.keeper
    while len(lines := msgspec.json.decode(await keeper.ask("recent"))["requests"]) < number:
        pass
    return [msgspec.json.decode(await keeper.ask("request", line["id"]))["story"] for line in lines]


@pytest.mark.parametrize("streamed", [True, False])
async def test_every_token_is_recorded_in_the_clients_trace(stage: Any, streamed: bool) -> None:
    tokens = stage.says("def add(a, b): return a", FinishReason.STOP)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    client = stage.client()
    body = stage.chat(stream=streamed, n=2)
    if streamed:
        async for _ in await client.chat.completions.create(**body, extra_headers=headers):
            pass
    else:
        await stage.post(CHAT, body, **headers)
    (story,) = await stories(stage, 1)
    assert story["trace_id"] == TRACE
    assert (story["outcome"], story["class"], story["tenant"]) == ("finished", "all", "acme")
    assert [len(choice["written_s"]) for choice in story["choices"]] == [len(tokens)] * 2
    for choice in story["choices"]:
        assert choice["written_s"] == sorted(choice["written_s"])
        assert sum(map(sum, choice["token_parts_s"])) == pytest.approx(choice["written_s"][-1] - choice["written_s"][0])
    assert sum(story["first"].values()) <= story["total_s"]
    assert story["streamed"] == streamed
    assert (0 < story["ttft_s"] <= story["total_s"]) if streamed else story["ttft_s"] is None
    (submit,) = stage.backstage.all_of(Submit)
    version, trace_id, span_id, flags = submit.traceparent.split("-")
    assert (version, trace_id, flags) == ("00", TRACE, "01")
    assert span_id != PARENT


@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01"])
async def test_a_request_without_a_usable_trace_begins_one(stage: Any, header: str) -> None:
    stage.says("x")
    await stage.post(CHAT, stage.chat(), **({"traceparent": header} if header else {}))
    (story,) = await stories(stage, 1)
    assert story["trace_id"] not in (TRACE, "0" * 32)
    assert len(story["trace_id"]) == 32


async def test_a_refused_request_has_a_story_without_tokens(stage: Any) -> None:
    stage.backstage.script = lambda submit: stage.backstage.send(
        "admission", Refused(submit.request, "queue_full", "full", 1.0)
    )
    status, _, headers = await stage.post(CHAT, stage.chat())
    (story,) = await stories(stage, 1)
    assert story["id"] == headers["x-request-id"]
    assert (status, story["outcome"], story["code"], story["ttft_s"]) == (429, "refused", "queue_full", None)


async def test_tokens_that_a_reader_did_not_take_wait_for_it(stage: Any) -> None:
    tokens = stage.tokenizer.encode("a word " * 4000, add_special_tokens=False)
    bare = stage.connect(receive_buffer=4096)
    stage.backstage.script = stage.backstage.admit
    bare.setblocking(True)
    bare.sendall(stage.raw_request(stage.chat(stream=True)))
    (submit,) = await stage.backstage.submitted()
    stage.backstage.speak(submit, tokens[:2000])
    bare.close()
    (story,) = await stories(stage, 1)
    assert story["code"] in ("client_gone", "slow_reader")
    assert len(story["choices"][0]["written_s"]) <= 2000
