"""Calls in real browsers while what they were set up with is gone: media, roster and mute go on, nobody is dropped."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio

from devstack.components import turn
from tests.harness.browser import Callers, Participant, needs_chromium
from tests.harness.client import Account
from tests.harness.platform import Platform

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.stack, needs_chromium]

STILL = 2.5  # s that a picture may stand still on a loaded machine: at 10 fps and with both cores busy
RELAY_BACK = 5.0  # s, row W2
SINGLE = "text=you reach those who are on the same one"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def owner(platform: Platform) -> Account:
    return await platform.register()


@pytest_asyncio.fixture(loop_scope="session")
async def account(platform: Platform, owner: Account) -> Account:
    """With a new room for each test: who closed a page is away for a while, not gone."""
    return await platform.equip(owner)


async def _two(callers: Callers, account: Account, query: str = "") -> tuple[Participant, Participant]:
    first = await callers.join(account, account.room, "Ann", query=query)
    second = await callers.join(account, account.room, "Bob", query=query)
    await asyncio.gather(first.sees(1), second.sees(1))
    return first, second


@pytest.mark.row("W1")
@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_a_call_does_not_notice_that_redis_is_gone(
    platform: Platform, callers: Callers, account: Account, fault: str
) -> None:
    first, second = await _two(callers, account)
    people = {await first.id(), await second.id()}
    await asyncio.gather(first.watch(), second.watch())
    await getattr(platform.stack, fault)("redis")
    await second.page.get_by_role("button", name="Mute", exact=True).click()
    await first.shows(".tile.silent:not(.own)")
    await asyncio.gather(*(one.shows(SINGLE) for one in (first, second)))
    third = await callers.join(account, account.room, "Cleo")
    assert len(await third.sees(2)) == 2
    await third.page.get_by_role("button", name="Leave").click()
    await first.page.locator("#roster li", has_text="Cleo").wait_for(state="detached")
    assert (await platform.stack.heal("redis")).accepts
    await asyncio.gather(*(one.page.locator(SINGLE).wait_for(state="hidden") for one in (first, second)))
    for one in (first, second):
        assert {known["id"] for known in (await one.state())["participants"]} == people, "nobody was dropped"
        assert await one.stall() < STILL
    await asyncio.gather(*(one.close() for one in (first, second, third)))


@pytest.mark.row("W2")
@pytest.mark.skipif(not turn.installed(), reason="coturn is not installed (Debian: apt install coturn)")
async def test_a_relayed_call_whose_relay_dies_goes_on_without_it(
    platform: Platform, callers: Callers, account: Account
) -> None:
    first, second = await _two(callers, account, "?relay")
    for one, other in ((first, second), (second, first)):
        await one.becomes("relayed", relayed={await other.id(): True})
    await asyncio.gather(first.watch(), second.watch())
    await platform.stack.kill("turn")
    for one in (first, second):
        await one.shows("text=The relay server is away.")
        await one.becomes("direct", relayed={await (second if one is first else first).id(): False})
        await one.still_sees(1)
        assert await one.stall() < RELAY_BACK
    assert (await platform.stack.heal("turn")).accepts
    for one in (first, second):
        await one.becomes("TURN is offered again", relayOffered=True)
        await one.page.locator("text=The relay server is away.").wait_for(state="hidden")
        await one.still_sees(1)
    await asyncio.gather(first.close(), second.close())


async def test_a_call_goes_on_while_the_signalling_starts_again(
    platform: Platform, callers: Callers, account: Account
) -> None:
    first, second = await _two(callers, account)
    people = {await first.id(), await second.id()}
    await asyncio.gather(first.watch(), second.watch())
    await platform.stack.kill("webrtc")
    await asyncio.gather(*(one.shows("text=reconnecting …") for one in (first, second)))
    assert (await platform.stack.heal("webrtc")).accepts
    for one in (first, second):
        await one.becomes("back, as who they were", limit=20.0, connection="connected")
        assert {known["id"] for known in (await one.state())["participants"]} == people
        await one.still_sees(1)
        assert await one.stall() < STILL
    await asyncio.gather(first.close(), second.close())
