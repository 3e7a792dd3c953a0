"""Row W2, webrtc.turn: while TURN is gone, hung or has another secret nobody is sent there, and everybody is told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from devstack.components import turn
from tests.harness.client import Account
from tests.harness.platform import Answer, Platform, eventually
from tests.harness.signals import health, metrics

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.row("W2"),
    pytest.mark.stack,
    pytest.mark.skipif(not turn.installed(), reason="coturn is not installed (Debian: apt install coturn)"),
]

NOTICED, BACK = 3.0, 5.0  # s
FAULTS = ("kill", "freeze", "another secret")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def account(platform: Platform) -> Account:
    return await platform.equip(await platform.register())


async def ticket(platform: Platform, account: Account) -> Answer:
    """What joining takes, through the Dashboard: two services must tell the same truth."""
    answer = await platform.call("POST", f"/api/v1/rooms/{account.room}/token", account)
    assert answer.status == 200, answer
    return answer


def kinds(answer: Answer) -> set[str]:
    return {url.partition(":")[0] for server in answer.body["ice_servers"] for url in server["urls"]}


async def broken(platform: Platform, fault: str) -> None:
    stack = platform.stack
    if fault in ("kill", "freeze"):
        await getattr(stack, fault)("turn")
        return
    stack.plan.turn.secret = "another"
    await stack.kill("turn")
    assert (await stack.heal("turn")).accepts, "it answers bindings"


async def mended(platform: Platform) -> None:
    stack = platform.stack
    if stack.plan.turn.secret != stack.state.secret("turn"):
        stack.plan.turn.secret = stack.state.secret("turn")
        await stack.kill("turn")
    assert (await stack.heal("turn")).accepts


class Socket:
    """A participant that only listens."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def until(self, kind: str, limit: float, **members: Any) -> dict[str, Any]:
        """The next message of a kind with these members."""
        async with asyncio.timeout(limit):
            async for message in self._socket:
                found: dict[str, Any] = json.loads(message.data)
                if found["type"] == kind and members.items() <= found.items():
                    return found
        raise AssertionError(f"closed: {self._socket.close_code}")


@asynccontextmanager
async def joined(platform: Platform, account: Account) -> AsyncIterator[Socket]:
    token = (await ticket(platform, account)).body["token"]
    async with platform.session.ws_connect(f"{platform.stack.url('webrtc')}/ws", params={"token": token}) as socket:
        yield Socket(socket)


@pytest.mark.parametrize("fault", FAULTS)
async def test_its_loss_is_told_within_three_seconds_and_its_return_within_five(
    platform: Platform, account: Account, fault: str
) -> None:
    async with joined(platform, account) as participant:
        welcome = await participant.until("welcome", 5)
        assert any(url.startswith("turn:") for server in welcome["ice_servers"] for url in server["urls"])
        used = (await metrics(platform, "webrtc")).total("fallback_activations_total", fallback="stun-only")
        await broken(platform, fault)
        begun = time.monotonic()

        async def told() -> list[Answer]:
            answer = await ticket(platform, account)
            return [answer] if kinds(answer) == {"stun"} else []

        [answer] = await eventually(told, "STUN alone", NOTICED)
        assert time.monotonic() - begun < NOTICED
        assert answer.headers["x-degraded-mode"] == "true"
        assert "stun-only" in answer.headers["x-fallback-used"]
        assert answer.headers["x-retry-after"]
        ice = await participant.until("ice", NOTICED, stun_only=True)
        assert not any(url.startswith("turn") for server in ice["ice_servers"] for url in server["urls"])
        degraded = await participant.until("degraded", 10)
        assert [(row["row"], row["fallback"]) for row in degraded["rows"]] == [("W2", "stun-only")]
        page = await health(platform, "W2", "webrtc")
        assert (page["circuit"], page["fallback"]) == ("open", "stun-only")
        assert (await metrics(platform, "webrtc")).total("fallback_activations_total", fallback="stun-only") > used
        await mended(platform)

        async def offered() -> bool:
            answer = await ticket(platform, account)
            return {"stun", "turn"} <= kinds(answer) and "x-degraded-mode" not in answer.headers

        await eventually(offered, "TURN is given out again", BACK)
        fresh = await participant.until("ice", BACK, stun_only=False)
        assert fresh["restart"] is True
        assert any(server.get("username", "").endswith(account.id) for server in fresh["ice_servers"])
