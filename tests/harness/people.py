"""Users for the load: registered, logged in, known to every instance, and equipped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.harness.client import Account
from tests.harness.platform import Platform
from tests.harness.routes import ROUTES

AT_ONCE = 2  # hashing a password is slow on purpose, and must not outlast the requests' own deadline


async def people(platform: Platform, count: int) -> list[Account]:
    """So many users, each with a room and an agent, whose profile every instance has shown once."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Account:
        async with gate:
            account = await platform.register(platform.dashboards[number % len(platform.dashboards)])
            return await platform.equip(account)

    accounts = await asyncio.gather(*(one(number) for number in range(count)))
    await warm(platform, accounts)
    return list(accounts)


async def warm(platform: Platform, accounts: Sequence[Account]) -> None:
    """Every instance has seen each session just now, and has a copy of what its user owns."""
    kinds = [kind for kind in await platform.kinds() if ROUTES[kind].copy and ROUTES[kind].method == "GET"]
    for account in accounts:
        for name in platform.dashboards:
            for kind in kinds:
                path = ROUTES[kind].path.format(user=account.id, room=account.room, agent=account.agent)
                answer = await platform.call("GET", f"/api/v1{path}", account, at=name)
                assert answer.status == 200, answer
