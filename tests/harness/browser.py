"""Real browsers in calls: one Chromium with a fake camera and microphone, a context and a page for each participant."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright

from tests.harness.client import Account
from tests.harness.platform import Platform, eventually

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream=fps=10",
    "--autoplay-policy=no-user-gesture-required",
)
LOOPBACK = "--allow-loopback-in-peer-connection"  # else no candidates where there is no other network
MEDIA = ("camera", "microphone")

_WATCH = """() => {
  clearInterval(window.watched?.timer);
  const watched = (window.watched = { frames: -1, since: performance.now(), longest: 0 });
  watched.timer = setInterval(async () => {
    const counts = Object.values(await auralinkCall.frames());
    const frames = counts.reduce((sum, count) => sum + count, 0);
    const now = performance.now();
    if (frames === watched.frames) watched.longest = Math.max(watched.longest, now - watched.since);
    else Object.assign(watched, { frames, since: now });
  }, 100);
}"""

needs_chromium = pytest.mark.skipif(
    not os.access(CHROMIUM, os.X_OK), reason=f"needs Chromium at {CHROMIUM} (Debian: apt-get install chromium)"
)


@asynccontextmanager
async def chromium(executable: str = CHROMIUM, *flags: str) -> AsyncIterator[Browser]:
    """A running browser."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=[*FLAGS, *(flags or (LOOPBACK,))])
        try:
            yield browser
        finally:
            await browser.close()


class Participant:
    """One page in a call."""

    def __init__(self, page: Page) -> None:
        self.page = page

    async def state(self) -> dict[str, Any]:
        """What the page says of itself (call.js, ``window.auralinkCall``); empty before it has joined."""
        return dict(await self.page.evaluate("window.auralinkCall?.state ?? {}"))

    async def frames(self) -> dict[str, int]:
        """Frames decoded so far, by participant."""
        return dict(await self.page.evaluate("window.auralinkCall.frames()"))

    async def id(self) -> str:
        return str((await self.state())["participant"])

    async def leave(self) -> None:
        """Leaves the call, so that nobody waits for this participant, and closes the page."""
        await self.page.get_by_role("button", name="Leave").click()
        await self.close()

    async def close(self) -> None:
        """As if the tab were closed."""
        await self.page.context.close()

    async def watch(self) -> None:
        """From now on ``stall`` knows how long the pictures of others have stood still at most."""
        await self.page.evaluate(_WATCH)

    async def stall(self) -> float:
        """The longest time since ``watch`` between two looks that found no new frame of anybody, in seconds.

        A page that had no processor to look with proves nothing.
        """
        return float(await self.page.evaluate("watched.longest / 1000"))

    # --- conditions

    async def sees(self, others: int, limit: float = 10.0, since: Mapping[str, int] | None = None) -> dict[str, int]:
        """Waits until frames of that many others have been decoded, more of each than ``since``."""

        async def rising() -> dict[str, int]:
            now = await self.frames()
            before = since or {}
            return now if sum(count > before.get(one, 0) for one, count in now.items()) >= others else {}

        try:
            return await eventually(rising, f"frames of {others} others", limit)
        except AssertionError as error:
            raise AssertionError(f"{error}; frames {await self.frames()}, {await self.state()}") from None

    async def still_sees(self, others: int, limit: float = 10.0) -> dict[str, int]:
        """Waits until new frames of that many others have been decoded, from now on."""
        return await self.sees(others, limit, await self.frames())

    async def shows(self, selector: str, limit: float = 10.0) -> None:
        """Waits until an element is to be seen."""
        await self.page.locator(selector).first.wait_for(state="visible", timeout=limit * 1000)

    async def becomes(self, what: str, limit: float = 10.0, **wanted: Any) -> None:
        """Waits until the page's own state has these values."""

        async def reached() -> bool:
            state = await self.state()
            return all(state.get(name) == value for name, value in wanted.items())

        try:
            await eventually(reached, what, limit)
        except AssertionError as error:
            raise AssertionError(f"{error}; {await self.state()}") from None


class Callers:
    """Opens pages of a room, for accounts of a platform; ``base``: where its Dashboard is to the browser."""

    def __init__(self, platform: Platform, browser: Browser, base: str = "") -> None:
        self.platform = platform
        self.browser = browser
        self.base = base or platform.stack.url("dashboard")

    async def open(
        self, account: Account, room: str, name: str, *, query: str = "", camera: bool = True
    ) -> Participant:
        """A page that waits to be joined."""
        context = await self.browser.new_context(permissions=list(MEDIA) if camera else [])
        context.set_default_timeout(15_000)
        await context.add_cookies([{"name": "auralink_session", "value": account.token, "url": self.base}])
        page = await context.new_page()
        await page.goto(f"{self.base}/call/{room}{query}")
        await page.get_by_label("Your name").fill(name)
        return Participant(page)

    async def join(self, account: Account, room: str, name: str, **options: Any) -> Participant:
        """A page in the call."""
        participant = await self.open(account, room, name, **options)
        await participant.page.get_by_role("button", name="Join").click()
        await participant.becomes("joined", connection="connected")
        return participant
