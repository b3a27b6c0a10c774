"""Grammars are tried in a process of their own, which a bad one may end and nobody else."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.errors import RequestError
from services.gateway import grammars as module
from services.gateway.grammars import Grammars
from services.gateway.structure import JsonSchema, SchemaFormat, read_structure
from services.gateway.trials import Trial

MINUTES = {"allOf": [{"type": "integer", "multipleOf": 9973}, {"type": "integer", "multipleOf": 9967}]}
ENORMOUS = {
    "allOf": [
        {"anyOf": [{"type": "object", "properties": {f"{each}{index}": {"type": "string"}}} for each in "ab"]}
        for index in range(12)
    ]
}


@pytest.fixture
async def grammars(checkpoint: Path) -> AsyncIterator[Grammars]:
    made = Grammars(checkpoint, 4096)
    yield made
    await made.close()


async def try_(grammars: Grammars, schema: dict[str, Any], tenant: str = "acme") -> None:
    structure = read_structure(SchemaFormat(JsonSchema("x", schema)), [], None, None)
    await grammars.check(structure, structure.grammar(), tenant)


async def check(grammars: Grammars, schema: dict[str, Any]) -> str:
    """Why a schema is refused; empty if it is not."""
    try:
        await try_(grammars, schema)
    except RequestError as error:
        return f"{error.status} {error.message}"
    return ""


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [(MINUTES, "takes more than 1 s of computing or 128 MiB"), (ENORMOUS, "schema too large")],
    ids=["minutes", "enormous"],
)
async def test_a_schema_that_costs_too_much_is_refused_and_the_next_one_is_tried(
    schema: dict[str, Any], sentence: str, grammars: Grammars
) -> None:
    assert await check(grammars, {"type": "string"}) == ""
    assert sentence in await check(grammars, schema)
    assert await check(grammars, {"type": "integer"}) == ""


async def test_what_was_tried_once_is_known(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    ask = grammars._ask

    async def noted(trial: Trial) -> Any:
        tried.append(trial.grammar)
        return await ask(trial)

    monkeypatch.setattr(grammars, "_ask", noted)
    wrong = {"type": "strnig"}
    answers = await asyncio.gather(*(check(grammars, wrong) for _ in range(3)), check(grammars, {"type": "null"}))
    assert (
        answers[:3]
        == ["400 response_format.json_schema.schema: this schema cannot be followed: Invalid type: strnig"] * 3
    )
    assert answers[3] == ""
    assert await check(grammars, wrong) == answers[0]
    assert len(tried) == 2
    monkeypatch.setattr(module, "MAX_KNOWN", 2)
    assert await check(grammars, {"type": "boolean"}) == ""
    assert len(grammars._verdicts) == 2


async def test_a_client_that_leaves_does_not_stop_the_trial_of_another(grammars: Grammars) -> None:
    leaving = asyncio.ensure_future(check(grammars, {"type": "string", "maxLength": 3}))
    staying = asyncio.ensure_future(check(grammars, {"type": "string", "maxLength": 3}))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == ""
    assert grammars._waiting == {}


async def test_too_many_new_grammars_at_once_are_refused(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 1)
    first = asyncio.ensure_future(check(grammars, {"type": "string"}))
    await asyncio.sleep(0)
    with pytest.raises(RequestError) as caught:
        await try_(grammars, {"type": "null"})
    assert (caught.value.status, caught.value.code) == (429, "queue_full")
    await try_(grammars, {"type": "boolean"}, "another tenant")
    assert await first == ""


async def test_a_process_that_was_killed_is_replaced(grammars: Grammars) -> None:
    assert await check(grammars, {"type": "string"}) == ""
    assert grammars._process is not None
    grammars._process.send_signal(signal.SIGKILL)
    await grammars._process.wait()
    assert await check(grammars, {"type": "integer"}) == ""


async def test_a_process_that_does_not_start_is_an_error_of_ours(checkpoint: Path) -> None:
    grammars = Grammars(checkpoint, 4096)
    grammars._command = ("-c", "raise SystemExit(3)")
    with pytest.raises(RequestError) as caught:
        await try_(grammars, {})
    assert (caught.value.status, caught.value.code) == (500, "internal_error")
    await grammars.close()
