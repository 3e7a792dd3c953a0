"""Users for the load: registered, logged in, known to every instance, and equipped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from tests.harness.client import Account
from tests.harness.platform import Platform, eventually
from tests.harness.routes import ROUTES

WARM_FOR = 120.0  # s; copies and sessions in an instance's memory live for 300
MODEL_LIMIT = 30.0  # s
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


async def ready(platform: Platform, accounts: Sequence[Account]) -> list[Account]:
    """The accounts with what they own, warm; whoever is already is not asked again."""
    for account in accounts:
        if account.id not in platform.equipped:
            platform.equipped[account.id] = account if account.room else await platform.equip(account)
    equipped = [platform.equipped[account.id] for account in accounts]
    if time.monotonic() - platform.warmed > WARM_FOR:
        await warm(platform, equipped)
        platform.warmed = time.monotonic()
    return equipped


async def warm(platform: Platform, accounts: Sequence[Account]) -> None:
    """Every instance has seen each session just now, and has a copy of what its user owns; and AI Core has read its
    model, which it does when it is first needed."""
    kinds = [kind for kind in await platform.kinds() if ROUTES[kind].copy and ROUTES[kind].method == "GET"]
    for account in accounts:
        for name in platform.dashboards:
            for kind in kinds:
                path = ROUTES[kind].path.format(user=account.id, room=account.room, agent=account.agent)
                answer = await platform.call("GET", f"/api/v1{path}", account, at=name)
                assert answer.status == 200, answer
    if accounts:
        await eventually(lambda: _finds_by_meaning(platform, accounts[0]), "memories are found by meaning", MODEL_LIMIT)


async def _finds_by_meaning(platform: Platform, account: Account) -> bool:
    answer = await platform.call("GET", "/api/v1/memories/search?q=note", account)
    return answer.status == 200 and "x-degraded-mode" not in answer.headers
