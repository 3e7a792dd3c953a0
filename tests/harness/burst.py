"""Many writes at once, from the test's own process: for filling the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import cycle

from tests.harness.client import Account, Recorder
from tests.harness.history import Event
from tests.harness.platform import Platform


async def burst(platform: Platform, accounts: Sequence[Account], each: int, label: str) -> list[Event]:
    """Each account changes its name ``each`` times, one after the other, at any instance; the accounts all at once."""
    recorder = Recorder(platform.session, platform.targets)

    async def change(account: Account) -> list[Event]:
        instances = cycle(platform.dashboards)
        return [await recorder.write(account, next(instances), f"{label} {number}") for number in range(each)]

    histories = await asyncio.gather(*(change(account) for account in accounts))
    return sorted((event for history in histories for event in history), key=lambda event: event.start)
