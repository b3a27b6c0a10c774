"""Services of another host, whose clock is another: the parts of a latency stay what they were."""

from array import array
from typing import Any

import msgspec
import pytest

from policies.commands import FinishReason
from services.wire import Admitted, RequestEnded, Submit, TokenFrame
from tests.services.gateway.conftest import Setup

SKEWS_NS = (50_000_000, -50_000_000)


@pytest.mark.parametrize("stage", [Setup(tracing=True, ahead_ns=skew) for skew in SKEWS_NS], indirect=True)
async def test_no_part_is_negative_and_none_holds_the_difference_of_the_clocks(stage: Any) -> None:
    backstage = stage.backstage
    clocks = [link.stream.clock for link in stage.gateway.links]
    await backstage.until(lambda: all(clock.ahead_ns for clock in clocks))
    for clock in clocks:
        assert abs(clock.ahead_ns - backstage.ahead_ns) <= clock.uncertainty_ns

    # It only shrinks: what is said of the clocks now holds for the request that follows.
    uncertain_s = max(clock.uncertainty_ns for clock in clocks) / 1e9
    queued_after_s: list[float] = []

    def serve(submit: Submit) -> None:
        now_ns = backstage.now_ns()
        queued_after_s.append((now_ns - backstage.ahead_ns - submit.received_ns) / 1e9)
        backstage.send("admission", Admitted(submit.request, "all", 1, now_ns, now_ns + 1000))
        for index in range(5):
            at_ns = backstage.now_ns()
            finish = FinishReason.LENGTH if index == 4 else 0
            backstage.send(
                "scheduler",
                TokenFrame(
                    step=index + 1,
                    executor=0,
                    revision=1,
                    sequences=array("q", [submit.request]).tobytes(),
                    tokens=array("i", [300]).tobytes(),
                    finish=array("b", [finish]).tobytes(),
                    ready_ns=array("q", [at_ns]).tobytes(),
                    planned_ns=at_ns + 1000,
                    launched_ns=at_ns + 2000,
                    computed_ns=at_ns + 3000,
                    returned_ns=at_ns + 4000,
                    chunks={submit.request: array("q", [1, 5, at_ns + 1000, at_ns + 2000, at_ns + 3000]).tobytes()},
                ),
            )
        backstage.send("scheduler", RequestEnded(submit.request, "finished", 5))

    backstage.script = serve
    async for _ in await stage.client().chat.completions.create(**stage.chat(stream=True)):
        pass
    keeper = stage.gateway.keeper
    (line,) = msgspec.json.decode(await keeper.ask("recent"))["requests"]
    story = msgspec.json.decode(await keeper.ask("request", line["id"]))["story"]
    parts = [*story["first"].values(), *(part for token in story["choices"][0]["token_parts_s"] for part in token)]
    assert min(parts) >= 0
    assert sum(story["first"].values()) == pytest.approx(story["ttft_s"])
    assert sum(parts) == pytest.approx(story["choices"][0]["written_s"][-1])
    until_queued_s = story["first"]["tokenize"] + story["first"]["submit"]
    assert until_queued_s == pytest.approx(queued_after_s[0], abs=uncertain_s)
