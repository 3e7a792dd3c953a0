"""Row D2, dashboard.redis: sessions live on in memory, writes go to the database."""

from __future__ import annotations

import pytest

from tests.harness.client import Account
from tests.harness.platform import PASSWORD, Platform, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("D2"), pytest.mark.stack]

RECOVERY = 5.0
DEADLINE = 2.4


@pytest.mark.parametrize("fault", ["kill", "freeze", "cut"])
async def test_sessions_survive_and_writes_go_to_the_database(
    platform: Platform, accounts: list[Account], fault: str
) -> None:
    account = accounts[1]
    assert (await platform.profile(account)).status == 200
    await getattr(platform.stack, fault)("redis")

    async def opened() -> bool:
        answer = await platform.profile(account)
        assert answer.status == 200, answer
        assert answer.seconds < DEADLINE
        assert "stale" not in answer.body
        return answer.headers.get("x-circuit-state") == "open"

    await eventually(opened, "the circuit of Redis is open")
    answer = await platform.profile(account)
    assert answer.headers["x-fallback-used"] == "memory-sessions"
    renamed = await platform.rename(account, f"without redis {fault}")
    assert renamed.status == 200, renamed
    assert (await platform.database()).users[account.id].name == f"without redis {fault}"

    token = await login_here(platform, account)
    await platform.stack.heal("redis")
    await platform.in_state("redis", "closed", at=("dashboard",), limit=RECOVERY)
    await known_elsewhere(platform, token)


async def login_here(platform: Platform, account: Account) -> Account:
    """A login while Redis is away: valid on this instance."""
    body = {"email": account.email, "password": PASSWORD}
    login = await platform.call("POST", "/api/v1/auth/login", json=body)
    assert login.status == 200, login
    fresh = Account(account.id, account.email, PASSWORD, login.body["access_token"])
    assert (await platform.profile(fresh)).status == 200
    return fresh


async def known_elsewhere(platform: Platform, account: Account) -> None:
    """Sessions made meanwhile are everywhere once Redis is back."""

    async def known() -> bool:
        return (await platform.profile(account, "dashboard-2")).status == 200

    await eventually(known, "the other instance knows the session", RECOVERY)


async def test_logged_out_stays_logged_out(platform: Platform) -> None:
    account = await platform.register()
    assert (await platform.profile(account)).status == 200
    await platform.stack.kill("redis")
    assert (await platform.call("POST", "/api/v1/auth/logout", account)).status == 204
    assert (await platform.profile(account)).status == 401
    await platform.stack.heal("redis")
    await platform.in_state("redis", "closed", limit=RECOVERY)

    async def ended() -> bool:
        return (await platform.profile(account, "dashboard-2")).status == 401

    await eventually(ended, "the session has ended everywhere", RECOVERY)
    assert (await platform.profile(account)).status == 401
