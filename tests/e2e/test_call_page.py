"""The call page in real browsers: media from peer to peer and through the SFU, and what people do in a call."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio

from tests.harness.browser import Callers, Participant, needs_chromium
from tests.harness.client import Account
from tests.harness.platform import Platform, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.stack, needs_chromium]

MUTED = ".tile.silent:not(.own)"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ann(platform: Platform) -> Account:
    """Who opens the room, and may moderate in it."""
    return await platform.equip(await platform.register())


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bob(platform: Platform) -> Account:
    return await platform.register()


async def test_a_call_from_first_to_last(callers: Callers, ann: Account, bob: Account) -> None:
    """One call, since each browser page costs a second: two from peer to peer, mute, chat, a reload, a third person."""
    first = await callers.join(ann, ann.room, "Ann")
    second = await callers.join(bob, ann.room, "<i>Bob</i>")
    await asyncio.gather(first.sees(1), second.sees(1))
    assert (await first.state())["mode"] == "p2p"
    await _mutes(first, second)
    await _chats(first, second)
    await _asks_an_agent(first)
    await _loads_again(first, second)
    third = await callers.join(bob, ann.room, "Cleo")
    await _through_the_sfu(first, second, third)
    await _removes(first, third)
    await first.page.get_by_role("button", name="Leave").click()
    await first.shows("text=You left the call")
    await second.shows("#alone")
    await asyncio.gather(*(one.close() for one in (first, second, third)))


async def _mutes(first: Participant, second: Participant) -> None:
    await second.page.get_by_role("button", name="Mute", exact=True).click()
    await first.shows(MUTED)
    await second.page.get_by_role("button", name="Unmute").click()
    await first.page.locator(MUTED).wait_for(state="detached")
    await first.page.locator("#roster").get_by_role("button", name="Mute").click()
    await second.shows("text=Ann muted your microphone.")
    await first.shows(MUTED)


async def _chats(first: Participant, second: Participant) -> None:
    await first.page.get_by_role("tab", name="Chat").click()
    await second.page.get_by_role("tab", name="Chat").click()
    await second.page.get_by_label("Message to everybody").fill("<b>hello</b>")
    await second.page.keyboard.press("Enter")
    await first.shows("#chat-log >> text=<b>hello</b>")
    await first.shows("#chat-log >> text=<i>Bob</i>")


async def _asks_an_agent(first: Participant) -> None:
    await first.page.get_by_role("tab", name="Chat").press("ArrowRight")
    await first.page.get_by_label("Message to the agent").fill("Are you there?")
    await first.page.keyboard.press("Enter")
    await first.shows("#agent-log >> text=You said: “Are you there?”")


async def _loads_again(first: Participant, second: Participant) -> None:
    """Who loads the page again is the same participant, still muted; nobody saw a leave."""
    before = await second.id()
    await second.page.reload()
    await second.becomes("back in the call", connection="connected", participant=before)
    await asyncio.gather(first.still_sees(1), second.sees(1))
    people = (await first.state())["participants"]
    assert [one["id"] for one in people] == [await first.id(), before]
    assert not next(one for one in people if one["id"] == before)["audio"]
    await asyncio.gather(first.page.reload(), second.page.reload())  # both offer at the same time
    await asyncio.gather(first.becomes("back", connection="connected"), second.becomes("back", connection="connected"))
    await asyncio.gather(first.sees(1), second.sees(1))
    assert (await first.state())["mode"] == "p2p"


async def _through_the_sfu(*people: Participant) -> None:
    for one in people:
        await one.becomes("through the SFU", mode="sfu", sfu={"pub": "connected", "sub": "connected"}, ice={})
    before = [await one.frames() for one in people]
    for one, frames in zip(people, before, strict=True):
        assert len(await one.sees(2, since=frames)) == 2


async def _removes(first: Participant, third: Participant) -> None:
    await first.page.get_by_role("tab", name="People").click()
    await first.page.locator("#roster li", has_text="Cleo").get_by_role("button", name="Remove").click()
    await third.shows("text=You were removed from this call.")

    async def gone() -> bool:
        return len((await first.state())["participants"]) == 2

    await eventually(gone, "the roster is without the third")


async def test_what_goes_wrong_is_said(callers: Callers, ann: Account) -> None:
    lonely = await callers.open(ann, "00000000-0000-4000-8000-000000000000", "Ann", camera=False)
    await lonely.page.get_by_role("button", name="Join").click()
    await lonely.shows("text=There is no such room.")
    await lonely.page.context.clear_cookies()
    await lonely.page.reload()
    await lonely.shows("text=Log in to join")
    await lonely.page.get_by_label("E-mail").fill(ann.email)
    await lonely.page.get_by_label("Password").fill("wrong password")
    await lonely.page.get_by_role("button", name="Log in").click()
    await lonely.shows("#login-problem:not(:empty)")
    await lonely.page.get_by_label("Password").fill(ann.password)
    await lonely.page.get_by_role("button", name="Log in").click()
    await lonely.shows("text=Ready to join?")
    await lonely.close()


async def test_who_refuses_camera_and_microphone_can_still_listen(callers: Callers, ann: Account) -> None:
    context = await callers.browser.new_context()
    await context.add_init_script(
        "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', 'NotAllowedError'); };"
    )
    await context.add_cookies([{"name": "auralink_session", "value": ann.token, "url": callers.base}])
    page = await context.new_page()
    await page.set_viewport_size({"width": 360, "height": 640})
    await page.goto(f"{callers.base}/call/{ann.room}")
    listener = Participant(page)
    await listener.shows("text=The browser was not allowed to use the camera.")
    assert await page.evaluate("document.documentElement.scrollWidth") <= 360
    await page.get_by_role("button", name="Join").click()
    await listener.becomes("joined", connection="connected")
    speaker = await callers.join(ann, ann.room, "Ann")
    await listener.sees(1)
    await speaker.shows(MUTED)
    assert await page.evaluate("document.documentElement.scrollWidth") <= 360
    await asyncio.gather(listener.close(), speaker.close())
