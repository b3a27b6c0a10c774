"""Callers have what there is one of by turns, and one that leaves keeps nobody waiting."""

import asyncio

from services.gateway.turns import Turns


async def worked(turns: Turns, caller: str, order: list[str]) -> None:
    async with turns.of(caller):
        order.append(caller)
        await asyncio.sleep(0)


async def test_a_caller_with_much_to_do_waits_for_itself_alone() -> None:
    turns, order = Turns(), list[str]()
    callers = ["much"] * 5 + ["little", "other", "little"]
    await asyncio.gather(*(worked(turns, caller, order) for caller in callers))
    assert order == ["much", "much", "little", "other", "much", "little", "much", "much"]
    await worked(turns, "late", order)
    assert order[-1] == "late"


async def test_whoever_leaves_while_it_waits_or_as_its_turn_comes_is_passed_over() -> None:
    turns, order = Turns(), list[str]()
    async with turns.of("first"):
        waits, comes, stays = (asyncio.create_task(worked(turns, name, order)) for name in ("waits", "comes", "stays"))
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.sleep(0)
    comes.cancel()
    await asyncio.wait_for(stays, 1)
    assert order == ["stays"]
    await asyncio.gather(waits, comes, return_exceptions=True)
