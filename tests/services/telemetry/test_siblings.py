"""Keepers that answer for one another's gateways."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.telemetry.keeper import siblings
from services.telemetry.keeper.answers import UNREADABLE, Now, own, together
from services.telemetry.keeper.keeper import Keeper
from services.telemetry.keeper.settings import KeeperSettings
from services.telemetry.keeper.siblings import ABSENT, MUTE, Siblings
from services.telemetry.keeper_link import KeeperLink
from services.telemetry.records import Asked, Ended, PolicyInForce, encode
from tests.services.telemetry.records import began, let, step

SECOND_NS = 10**9
NAMES = ["gateway", "gateway-2"]
NOW = Now(100 * SECOND_NS, 1000.5)


class House:
    """The keeper of a gateway that has served one request, without its process."""

    def __init__(self, folder: Path, name: str, instance: str, request: int, num_tokens: int) -> None:
        settings = KeeperSettings("gateway", instance, "scheduler", name=name, gateways=NAMES, run=str(folder))
        self.keeper = Keeper(lambda: NOW.unix_s - 1, settings)
        for record in served(request, num_tokens):
            self.keeper.take(record)
        self.keeper.take(began(10 + request))  # runs on
        self.keeper.batch()
        self.keeper.num_unread = request
        self.siblings = Siblings(settings, self.own)

    def own(self, asked: Asked) -> bytes:
        return own(self.keeper, asked, NOW)

    async def ask(self, asked: Asked) -> Any:
        return msgspec.json.decode(together(asked, self.own(asked), await self.siblings.ask(asked)))


def served(request: int, num_tokens: int) -> list[Any]:
    """A request of a tenant of its own, with tokens each 100 ns."""
    return [
        PolicyInForce(1, "slai", [("paid", 1e-7, 0.1)]),
        msgspec.structs.replace(began(request), tenant=f"tenant-{request}"),
        let(request),
        *(step(number, [request], [number * 100 + 95]) for number in range(1, num_tokens + 1)),
        Ended(request, "finished", "", num_tokens, request * SECOND_NS),
    ]


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[list[House]]:
    houses = [House(tmp_path, "gateway", "11", 1, 3), House(tmp_path, "gateway-2", "22", 2, 5)]
    for house in houses:
        await house.siblings.open()
    yield houses
    for house in houses:
        house.siblings.close()
    assert names_in(tmp_path) == [], "a keeper that ends takes its socket with it"


async def test_whichever_gateway_is_asked_tells_of_all(pair: list[House]) -> None:
    for house in pair:
        recent = await house.ask(Asked(0, "recent"))
        assert [line["id"] for line in recent["requests"]] == ["answer-2", "answer-1"]
        assert [line["gateway"] for line in recent["requests"]] == ["gateway-2", "gateway"]
        assert recent["silent"] == {}
        for request in (1, 2):
            told = await house.ask(Asked(0, "request", f"answer-{request}"))
            assert told["story"]["tenant"] == f"tenant-{request}"
        assert await house.ask(Asked(0, "request", "nobody")) == {"story": None, "silent": {}}


async def test_of_requests_that_share_a_trace_the_newest_is_told_whoever_served_it(pair: list[House]) -> None:
    for house in pair:
        assert (await house.ask(Asked(0, "request", (b"t" * 16).hex())))["story"]["id"] == "answer-2"


async def test_a_tenant_is_told_its_own_by_every_gateway_and_no_more(pair: list[House]) -> None:
    theirs = await pair[0].ask(Asked(0, "recent", tenant="tenant-2"))
    assert [line["id"] for line in theirs["requests"]] == ["answer-2"]
    for tenant, known in (("tenant-2", True), ("tenant-1", False)):
        told = await pair[0].ask(Asked(0, "request", "answer-2", tenant=tenant))
        assert (told["story"] is not None) == known


async def test_figures_of_now_are_those_of_all_together(pair: list[House]) -> None:
    one, other = [await house.ask(Asked(0, "live")) for house in pair]
    assert one["figures"] == other["figures"]
    paid = one["figures"]["classes"]["paid"]
    assert paid["requests_per_s"] == 2 / 5
    assert paid["tokens_per_s"] == (3 + 5) / 5
    assert paid["ttft_attained"] == 0
    assert paid["tbt_p50_s"] is not None
    assert sorted(one["figures"]["tenants"]) == ["tenant-1", "tenant-2"]
    assert one["num_running"] == 2
    assert sorted(line["id"] for line in one["running"]) == ["answer-11", "answer-12"]
    assert [line["id"] for line in one["misses"]] == ["answer-2", "answer-1"]
    assert one["dropped"] == {"unread_records": 1 + 2}


async def test_a_gateway_that_says_nothing_is_named_and_the_rest_is_told(
    tmp_path: Path, pair: list[House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siblings, "ANSWER_S", 1.0)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "gateway-2.33"))
        mute.listen()
        recent = await pair[0].ask(Asked(0, "recent"))
    assert recent["silent"] == {"gateway-2": MUTE}
    assert [line["id"] for line in recent["requests"]] == ["answer-2", "answer-1"]
    # Nobody listens there any more: it was killed, and what it left is removed.
    assert (await pair[0].ask(Asked(0, "recent")))["silent"] == {}
    assert "gateway-2.33" not in names_in(tmp_path)


async def test_a_socket_that_cannot_be_removed_does_not_end_the_looking(
    tmp_path: Path, pair: list[House], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "gateway-2.33"))
    monkeypatch.setattr(Path, "unlink", refuse)
    recent = await pair[0].ask(Asked(0, "recent"))
    monkeypatch.undo()
    assert [line["id"] for line in recent["requests"]] == ["answer-2", "answer-1"]
    (tmp_path / "gateway-2.33").unlink(missing_ok=True)


async def test_a_gateway_that_is_not_there_is_named(pair: list[House]) -> None:
    pair[1].siblings.close()
    assert (await pair[0].ask(Asked(0, "live")))["silent"] == {"gateway-2": ABSENT}


@pytest.mark.parametrize(
    "nonsense", [b"\x05\0\0\0hello", b"\xff\xff\xff\x7f", encode(PolicyInForce(1, "slai", [])), b"\x05"]
)
async def test_what_is_no_question_ends_its_connection_alone(
    pair: list[House], tmp_path: Path, nonsense: bytes
) -> None:
    reader, writer = await asyncio.open_unix_connection(tmp_path / "gateway.11")
    writer.write(nonsense)
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    assert (await pair[1].ask(Asked(0, "recent")))["silent"] == {}
    assert pair[0].keeper.judge.policies[1].classes, "a question is all that another may say"


async def test_only_this_user_may_ask(pair: list[House], tmp_path: Path) -> None:
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in names_in(tmp_path)} == {0o600}


async def test_an_answer_of_another_version_costs_that_gateway_alone(tmp_path: Path, pair: list[House]) -> None:
    other = Siblings(KeeperSettings("gateway", "44", "scheduler", name="gateway-3", run=str(tmp_path)), lambda _: b"{")
    await other.open()
    recent = await pair[0].ask(Asked(0, "recent"))
    other.close()
    assert recent["silent"] == {"gateway-3": UNREADABLE}
    assert len(recent["requests"]) == 2


async def test_a_socket_that_cannot_be_made_is_said_and_nothing_more(tmp_path: Path, caplog: Any) -> None:
    long = tmp_path / ("x" * 100)
    alone = Siblings(KeeperSettings("gateway", "1", "scheduler", run=str(long)), lambda _: b"")
    await alone.open()
    alone.close()
    assert "other gateways cannot ask this one" in caplog.text


@pytest.fixture
async def links(tmp_path: Path) -> AsyncIterator[list[KeeperLink]]:
    """The processes."""
    links = []
    for number, name in enumerate(NAMES, start=1):
        links.append(KeeperLink())
        given = KeeperSettings("gateway", str(number), "scheduler", name=name, gateways=NAMES, run=str(tmp_path))
        await links[-1].start(given)
    yield links
    for link in links:
        await link.close()


async def test_keepers_find_one_another_and_tell_their_gateways_of_all(tmp_path: Path, links: list[KeeperLink]) -> None:
    for number, link in enumerate(links, start=1):
        for record in served(number, 3):
            link.record(record)
    async with asyncio.timeout(60):
        while len([name for name in names_in(tmp_path) if name.startswith("gateway")]) < 2:  # noqa: ASYNC110  a folder
            await asyncio.sleep(0.02)
    for link in links:
        assert msgspec.json.decode(await link.ask("live")).keys() >= {"figures", "running", "silent"}
    for number in (1, 2):
        story = msgspec.json.decode(await links[0].ask("request", f"answer-{number}"))["story"]
        assert story["gateway"] == NAMES[number - 1]
    assert len(msgspec.json.decode(await links[1].ask("recent"))["requests"]) == 2
