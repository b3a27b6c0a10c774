"""A short run of `fairlead bench fuzz-http`: whatever is sent, each answer is a success or a defined error."""

import asyncio
import socket
from array import array
from itertools import islice
from typing import Any

import pytest

from ops.bench.http_answers import problem, replies
from ops.bench.http_cases import Case, Cases
from policies.commands import FinishReason
from services.gateway.grammars import Grammars
from services.gateway.trials import Trial, Verdict
from services.wire import RequestEnded, Submit
from tests.services.gateway.conftest import ADMIN_KEY, KEY, Setup

NUM_CASES, NUM_CONNECTIONS, SEED = 600, 48, 5
SHORT = Setup(http={"header_s": 0.3, "body_s": 0.3, "idle_s": 0.3})


async def exchange(port: int, case: Case) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    with socket.socket() as bare:
        bare.setblocking(False)
        await loop.sock_connect(bare, ("127.0.0.1", port))
        try:
            await loop.sock_sendall(bare, case.sent)
            if case.ends == "half":
                bare.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it was refused before all was sent; the answer may be there
        if case.ends == "reset":
            return b""
        try:
            while piece := await loop.sock_recv(bare, 2**16):
                data += piece
        except ConnectionError:
            return b"" if not case.is_whole else data
    return data


@pytest.mark.parametrize("stage", [SHORT], indirect=True)
async def test_every_answer_to_mutated_requests_is_a_defined_one(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def judged(self: Grammars, trial: Trial) -> Verdict:
        return Verdict("")

    monkeypatch.setattr(Grammars, "_ask", judged)  # the process that tries them has tests of its own
    tokens = stage.tokenizer.encode("word", add_special_tokens=False)

    def script(submit: Submit) -> None:
        stage.backstage.admit(submit)
        if submit.pooling:
            rows = [(submit.request, 1, int(FinishReason.STOP))]
            stage.backstage.frame(rows, vectors={submit.request: array("f", [1.0]).tobytes()})
            stage.backstage.send("scheduler", RequestEnded(submit.request, "finished", 1))
        else:
            stage.backstage.speak(submit, tokens)

    stage.backstage.script = script
    cases = (case for case in Cases(SEED, (KEY, ADMIN_KEY)) if b"/v1/fairlead/live" not in case.sent)
    cases = islice(cases, NUM_CASES)
    statuses: set[int] = set()

    async def work() -> None:
        for case in cases:
            async with asyncio.timeout(30):
                data = await exchange(stage.gateway.port, case)
            to_head = case.sent.startswith(b"HEAD ")
            assert data or not case.is_whole, case
            for reply in replies(data, to_head=to_head):
                assert problem(reply, to_head=to_head) == "", case
                statuses.add(reply.status)

    await asyncio.gather(*(work() for _ in range(NUM_CONNECTIONS)))
    assert {200, 400, 401, 404, 405, 414, 431} <= statuses
    assert stage.gateway.api.missing() == []
    assert not stage.gateway._backend.running


def test_what_is_no_defined_answer_is_seen() -> None:
    def judged(data: bytes) -> list[str]:
        return [problem(reply, to_head=False) for reply in replies(data, to_head=False)]

    head = b"HTTP/1.1 %b\r\nserver: fairlead\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\n{}"
    assert judged(head % b"500 Oops") == ["status 500 has another form: {}"]
    assert judged(head % b"200 OK") == ["a success of type 'text/plain'"]
    assert "lets pages" in judged(head.replace(b"content-type", b"access-control-allow-origin") % b"200 OK")[0]
    error = b'{"error":{"message":"the gateway failed","type":"server_error","param":null,"code":"internal_error"}}'
    sent = b"HTTP/1.1 500 Oops\r\nserver: fairlead\r\ncontent-length: %d\r\n\r\n%b" % (len(error), error)
    assert judged(sent) == ["status 500: the gateway failed"]
