"""Kept answers of the provider chain, and which process is asking what: in Redis, and in memory while that is away.

Redis is only ever a help here (``pipelines``), and a process that is alone asks it for no claims (``neighbours``).
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any, Final

import orjson
from redis.asyncio import Redis

from ai_core.outbound.neighbours import Neighbours
from ai_core.outbound.pipelines import BATCH, LEFT_OUT, Command, Pipelines, Unavailable
from ai_core.ports import Claim
from ai_core.query import Completion, Usage
from resilience import Clock, MemoryCache

MAX_ANSWER: Final = 256_000
"""Bytes of an answer that are kept at most."""
MAX_BEHIND: Final = 1_000
MAX_BYTES_BEHIND: Final = 16_000_000
"""Answers that wait to be written, and their bytes; the oldest go first."""
GATHERING: Final = 0.05
"""Seconds for which answers are gathered before they are written together: a write costs as much as ten answers."""
IN_DEMAND: Final = 0.01
"""The same while another process may be waiting for one of them."""
FIRST_LOOK, LAST_LOOK = 0.01, 0.1
"""Seconds between two looks at another process's answer: growing from the first to the last."""

_RELEASE: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class ResponseCopies:
    """The port ``Answers``. ``ttl`` in seconds, for both stores; ``memory`` bounds this process's own.

    Run ``write_forever`` in the background, and ``neighbours.watch``.
    """

    def __init__(
        self,
        client: Redis | None,
        call: Callable[..., Awaitable[Any]],
        memory: MemoryCache,
        clock: Clock,
        *,
        ttl: float = 86_400.0,
    ) -> None:
        self._redis = Pipelines(client, call, clock)
        self.neighbours = Neighbours(self._redis, clock)
        self._memory = memory
        self._clock = clock
        self._ttl = ttl
        self._behind: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        self._bytes_behind = 0
        self._own: set[str] = set()  # claims of this process that Redis may still hold
        self._work = asyncio.Event()

    # -- the port

    async def get(self, key: str, younger: float = inf) -> Completion | None:
        """The kept answer; Redis is asked when this process has none, or none that is young enough."""
        own = _decoded(self._memory.get(key))
        if own is not None and self._age(own) <= younger:
            return own
        try:
            [found] = await self._redis.run(("GET", _answer(key)))
        except Unavailable:
            return own
        other = _decoded(found)
        if other is None or (own is not None and self._age(own) <= self._age(other)):
            return own
        self._remember(key, found, self._age(other))
        return other

    def keep(self, key: str, completion: Completion, claim: str = "") -> None:
        """Keeps an answer here at once, and in Redis soon; one that is too large only gives its claim back."""
        value = _encoded(completion, self._clock.time(), claim)
        if len(value) > MAX_ANSWER:
            self.release(key, claim)
            return
        self._remember(key, value, 0.0)
        self._later(key, value, claim)

    async def claim(self, key: str, seconds: float) -> Claim:
        """The claim, unless another process holds one; none where there is no other."""
        if self.neighbours.alone():
            return Claim()
        await self.neighbours.joined()
        token, name = f"{self.neighbours.name}.{secrets.token_hex(8)}", _asking(key)
        try:
            # Source: redis.io/commands/set; with NX and GET it gives what was there before, or nothing when it was set.
            [holder] = await self._redis.run(("SET", name, token, "NX", "GET", "PX", int(seconds * 1000)))
        except Unavailable:
            return Claim()
        if holder is None:
            self._own.add(token)
            return Claim(mine=token)
        found = holder.decode()
        # One of our own that is about to be given back is nobody to wait for.
        return Claim() if found in self._own else Claim(holder=found)

    async def follow(self, key: str, holder: str, seconds: float) -> Completion | None:
        """Looks for the holder's answer until it is there, or its claim or its process has gone."""
        sign = self.neighbours.sign_of(holder.partition(".")[0])
        end, pause = self._clock.monotonic() + seconds, FIRST_LOOK
        while (left := end - self._clock.monotonic()) > 0:
            await self._clock.sleep(min(pause, left))
            pause = min(pause * 1.5, LAST_LOOK)
            try:
                asking, value, seen = await self._redis.run(("GET", _asking(key)), ("GET", _answer(key)), sign)
            except Unavailable:
                return None
            if isinstance(asking, bytes) and asking.decode() == holder and seen is not None:
                continue
            answer = _decoded(value)
            if answer is None or _claim_of(value) != holder:
                return None
            self._remember(key, value, self._age(answer))
            return answer
        return None

    def release(self, key: str, claim: str) -> None:
        """Gives the claim back soon."""
        if claim:
            self._later(key, self._behind.get(key, (b"", ""))[0], claim)

    # -- behind

    async def write_forever(self) -> None:
        """Writes what there is to write, until cancelled. What cannot be written is kept for later, within bounds."""
        while True:
            await self._work.wait()
            claimed = any(claim for _, claim in self._behind.values())
            await self._clock.sleep(IN_DEMAND if claimed else GATHERING)
            self._work.clear()
            while self._behind:
                if not await self._write():
                    await self._clock.sleep(LEFT_OUT)

    async def close(self) -> None:
        """Waits for nothing."""
        await self._redis.close()

    async def _write(self) -> bool:
        """Writes some of it; false when that was not possible."""
        batch = [(key, *self._behind[key]) for key in list(self._behind)[:BATCH]]
        try:
            await self._redis.run(*(command for one in batch for command in self._commands(*one)))
        except Unavailable:
            return False
        for key, value, claim in batch:
            self._own.discard(claim)
            if self._behind.get(key) == (value, claim):
                self._forget(key)
        return True

    def _commands(self, key: str, value: bytes, claim: str) -> list[Command]:
        write: list[Command] = [("SET", _answer(key), value, "PX", int(self._ttl * 1000))] if value else []
        return [*write, ("EVAL", _RELEASE, 1, _asking(key), claim)] if claim else write

    def _later(self, key: str, value: bytes, claim: str) -> None:
        """What takes another's place gives that one's claim back with it."""
        claim = claim or self._behind.get(key, (b"", ""))[1]
        self._forget(key)
        self._behind[key] = (value, claim)
        if claim:
            self._own.add(claim)
        self._bytes_behind += len(value)
        while len(self._behind) > MAX_BEHIND or self._bytes_behind > MAX_BYTES_BEHIND:
            self._forget(next(iter(self._behind)))
        self._work.set()

    def _forget(self, key: str) -> None:
        value, claim = self._behind.pop(key, (b"", ""))
        self._own.discard(claim)
        self._bytes_behind -= len(value)

    # -- inside

    def _remember(self, key: str, value: bytes, age: float) -> None:
        if age < self._ttl:
            self._memory.set(key, value, self._ttl - age)

    def _age(self, answer: Completion) -> float:
        return max(0.0, self._clock.time() - (answer.as_of or 0.0))


def _answer(key: str) -> str:
    return f"ai-core:answer:{key}"


def _asking(key: str) -> str:
    return f"ai-core:asking:{key}"


def _encoded(answer: Completion, at: float, claim: str) -> bytes:
    usage = (answer.usage.prompt, answer.usage.completion)
    told = (answer.provider, answer.model, answer.simulated, answer.fallback_from, answer.cost)
    return orjson.dumps([at, claim, usage, told, answer.body])


def _decoded(value: object) -> Completion | None:
    """None for what is no answer, such as one of another version."""
    if not isinstance(value, bytes):
        return None
    try:
        at, _, usage, (provider, model, simulated, fallback_from, cost), body = orjson.loads(value)
        return Completion(body, provider, model, Usage(*usage), simulated, at, fallback_from, cost)
    except (ValueError, TypeError):
        return None


def _claim_of(value: object) -> str:
    return str(orjson.loads(value)[1]) if isinstance(value, bytes) else ""
