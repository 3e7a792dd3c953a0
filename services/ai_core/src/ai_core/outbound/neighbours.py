"""Whether other processes of AI Core are on this Redis: one that is alone asks it for no claims (``response_copies``).

A claim is a round trip before every call of a provider, a third of what a fast answer takes, and of use only where
somebody else could ask the same. So each process says every now and then that it is there, and looks who else is.

The rule kept: when a process that has joined claims a query, no other still believes to be alone. A look is believed
for ``BELIEVED``, and who joins waits that long before the first claim, so that all looks from before are forgotten. And
who has been away, or was cut off from Redis, may come back: after the register began anew, or lost somebody, nobody
believes to be alone for ``SETTLED``. Two processes of which one just came may ask the same twice; nothing else happens.
"""

from __future__ import annotations

import asyncio
import secrets
from math import inf
from typing import Final

from ai_core.outbound.pipelines import Command, Pipelines, Unavailable
from resilience import Clock

KEY: Final = "ai-core:processes"
BELIEVED: Final = 0.1
"""Seconds after which a look is forgotten."""
BEAT: Final = 1.0
"""Seconds between two looks at most."""
GONE: Final = 5.0
"""Seconds without a sign after which a process counts as gone."""
SETTLED: Final = 6.0
"""Seconds in which everybody is back: a Redis that is well again is in use within 5 s."""

_LOOK: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local began = redis.call('EXISTS', KEYS[1]) == 0
local joined = redis.call('ZADD', KEYS[1], now, ARGV[1])
local lost = redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {redis.call('ZCARD', KEYS[1]), joined, (began or lost > 0) and 1 or 0}
"""
"""How many there are, whether this one was among them before, whether others may be missing; by the server's clock."""


class Neighbours:
    """Run ``watch`` in the background; until it has looked, nobody is known to be alone."""

    def __init__(self, redis: Pipelines, clock: Clock) -> None:
        self._redis = redis
        self._clock = clock
        self.name = secrets.token_hex(8)
        self._alone_until = -inf
        self._known_from = -inf  # from when on all others know of this one
        self._settled_from = -inf
        self._asked = asyncio.Event()
        self._arrived = asyncio.Event()
        self._arrived.set()

    @staticmethod
    def sign_of(name: str) -> Command:
        """What brings the last sign of a process; nothing when it is gone."""
        return ("ZSCORE", KEY, name)

    def alone(self) -> bool:
        """Whether no other process can be asking anything."""
        self._asked.set()
        return self._clock.monotonic() < self._alone_until

    async def joined(self) -> None:
        """Waits until all others know of this process: until its first look, and for ``BELIEVED`` after it has come."""
        await self._arrived.wait()  # no longer than the look may take
        left = self._known_from - self._clock.monotonic()
        if left > 0:
            await self._clock.sleep(left)

    async def watch(self) -> None:
        """Shows this process and looks for others, until cancelled: often while it is alone and busy."""
        self._arrived.clear()
        while True:
            self._asked.clear()
            try:
                pause = BELIEVED / 2 if await self._look() else BEAT / 2
            finally:
                self._arrived.set()
            await self._clock.sleep(pause)
            timer = self._clock.call_later(BEAT / 2, self._asked.set)
            try:
                await self._asked.wait()
            finally:
                timer.cancel()

    async def _look(self) -> bool:
        """Whether nobody else is there."""
        began = self._clock.monotonic()
        try:
            [found] = await self._redis.run(("EVAL", _LOOK, 1, KEY, self.name, int(GONE * 1000)))
        except Unavailable:
            return False
        count, joined, unsettled = found
        if joined:
            self._known_from = self._clock.monotonic() + BELIEVED
        if unsettled:
            self._settled_from = began + SETTLED
        alone: bool = count == 1 and began >= self._settled_from
        if alone:
            self._alone_until = began + BELIEVED
        return alone
