"""A tenant asks how it fares; admission is played."""

import asyncio
from typing import Any

import pytest

from services.gateway import questions
from services.wire_operator import Report, ReportAsked


async def asked(stage: Any, path: str, document: bytes) -> tuple[ReportAsked, int, Any]:
    """The question that a request becomes, and its answer."""
    getting = asyncio.ensure_future(stage.get(path))
    (question,) = await stage.backstage.until(lambda: stage.backstage.all_of(ReportAsked, "admission"))
    stage.backstage.send("admission", Report(question.number, document))
    status, answer, _ = await getting
    return question, status, answer


async def test_the_question_bears_the_tenant_of_the_key_whatever_the_client_says(stage: Any) -> None:
    question, status, answer = await asked(stage, "/v1/fairlead/fairness?tenant=globex", b'{"gap": 1.5}')
    assert (question.about, question.tenant) == ("fairness", "acme")
    assert (status, answer) == (200, {"gap": 1.5})


async def test_an_operator_is_told_of_all(stage: Any, admin_key: str) -> None:
    for path in ("/v1/fairlead/fairness", "/v1/fairlead/usage"):
        getting = asyncio.ensure_future(stage.get(path, admin_key))
        question = (await stage.backstage.until(lambda: stage.backstage.all_of(ReportAsked, "admission"))).pop()
        stage.backstage.send("admission", Report(question.number, b"{}"))
        assert (await getting)[0] == 200
        assert question.tenant == ""
        stage.backstage.received_messages.clear()


async def test_usage_is_asked_for_the_days_wanted(stage: Any) -> None:
    question, status, answer = await asked(stage, "/v1/fairlead/usage?days=7", b'{"usage": []}')
    assert (question.about, question.tenant, question.days) == ("usage", "acme", 7)
    assert (status, answer) == (200, {"usage": []})


@pytest.mark.parametrize("days", ["0", "-1", "401", "x", "", "1" * 5000])
async def test_a_number_of_days_that_is_none_is_said_to_be_wrong(stage: Any, days: str) -> None:
    status, answer, _ = await stage.get(f"/v1/fairlead/usage?days={days}")
    assert status == 400
    assert answer["error"]["message"] == f"days: {days[:40]!r} is no number of days from 1 to 400"


async def test_without_a_key_nothing_is_told(stage: Any) -> None:
    for path in ("/v1/fairlead/fairness", "/v1/fairlead/usage"):
        status, _, _ = await stage.get(path, key="")
        assert status == 401


async def test_what_admission_cannot_say_is_a_503_with_its_reason(stage: Any) -> None:
    _, status, answer = await asked(stage, "/v1/fairlead/usage", b'{"error": "the store is away"}')
    assert status == 503
    assert answer["error"]["message"] == "the store is away; try again"


async def test_an_admission_that_is_silent_or_away_is_a_503(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "ANSWER_S", 0.02)
    status, answer, _ = await stage.get("/v1/fairlead/fairness")
    assert status == 503
    assert "did not answer" in answer["error"]["message"]
    await stage.backstage.lose("admission")
    await stage.backstage.until(lambda: True)
    status, answer, _ = await stage.get("/v1/fairlead/fairness")
    assert status == 503
