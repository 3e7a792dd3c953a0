"""Row D1, dashboard.postgres: with the circuit open a read from a copy costs no more than one from the database."""

from __future__ import annotations

from statistics import median

import pytest

from tests.harness.client import Account
from tests.harness.platform import Platform, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("D1"), pytest.mark.stack]

READS = 150
ALLOWANCE = 1.5  # for a machine that is busy with something else at one of the two times


async def typical(platform: Platform, account: Account) -> float:
    """Median seconds of a read, one after the other."""
    answers = [await platform.profile(account) for _ in range(READS)]
    assert all(answer.status == 200 for answer in answers)
    return median(answer.seconds for answer in answers)


async def test_a_copy_is_as_fast_as_the_database(platform: Platform, accounts: list[Account]) -> None:
    account = accounts[0]
    await typical(platform, account)
    healthy = await typical(platform, account)
    await platform.stack.kill("postgres")

    async def opened() -> bool:
        return (await platform.profile(account)).headers.get("x-circuit-state") == "open"

    await eventually(opened, "the circuit is open")
    assert await typical(platform, account) < healthy * ALLOWANCE


async def test_what_nobody_has_read_is_an_honest_error(platform: Platform, accounts: list[Account]) -> None:
    """Registered, then lost from every copy: 503 while it is tried, 429 once the circuit is open."""
    await platform.stack.kill("postgres")
    missing = {"email": "nobody@example.org", "password": "whatever it was"}
    seen = set()

    async def opened() -> bool:
        answer = await platform.call("POST", "/api/v1/auth/login", json=missing)
        seen.add(answer.status)
        assert answer.status in (503, 429), answer
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.body["error"] in ("DATABASE_ERROR", "CIRCUIT_OPEN")
        return answer.status == 429

    await eventually(opened, "the circuit is open")
    assert seen == {503, 429}
