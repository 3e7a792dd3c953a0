"""Sessions in Redis (row D2, dashboard.redis): shared by the instances, remembered by the one that has seen them.

A session is asked for in Redis at most once a second. While Redis is away, what this instance has seen in the last five
minutes stays valid; what it has logged out stays logged out, and is deleted in Redis when that is back.
"""

from __future__ import annotations

from collections import OrderedDict

import redis.asyncio as redis

from dashboard.degradation import MEMORY_SESSIONS
from dashboard.model import Session, SessionUnknown
from resilience import MISSING, Clock, Missing, RowPolicy, Rung, Served
from service_kit.redis_client import AWAY

CHECK_SECONDS = 1.0
REMEMBER_SECONDS = 300.0
MAX_REMEMBERED = 50_000


def _key(session_id: str) -> str:
    return f"session:{session_id}"


class RedisSessions:
    """See the port. ``lifetime`` (seconds) is a session's longest life: ended ones are remembered that long."""

    def __init__(self, client: redis.Redis, policy: RowPolicy, clock: Clock, *, lifetime: float) -> None:
        self._client = client
        self._policy = policy
        self._clock = clock
        self._lifetime = lifetime
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._ended: OrderedDict[str, float] = OrderedDict()
        self._unwritten: OrderedDict[str, tuple[Session, float]] = OrderedDict()
        self.behind = False
        """Something happened that Redis has not heard of; also when its circuit never opened."""

    async def create(self, session: Session, seconds: float) -> Served[None]:
        """See the port. While Redis is away the session is this instance's alone, until Redis is back."""

        async def write() -> None:
            await self._client.set(_key(session.id), session.user_id, ex=int(seconds))

        async def keep(_: BaseException) -> None:
            _put(self._unwritten, session.id, (session, self._clock.monotonic() + seconds))
            self.behind = True

        served = await self._policy.serve(write, Rung(MEMORY_SESSIONS, keep))
        self._see(session.id)
        return served

    def _see(self, session_id: str) -> None:
        _put(self._seen, session_id, self._clock.monotonic())

    async def check(self, session_id: str) -> Served[None]:
        """Raises SessionUnknown."""
        if session_id in self._ended:
            raise SessionUnknown
        now = self._clock.monotonic()
        seen = self._seen.get(session_id, -REMEMBER_SECONDS)
        if now - seen < CHECK_SECONDS:
            return _FINE

        async def ask() -> None:
            if not await self._client.exists(_key(session_id)) and session_id not in self._unwritten:
                self._seen.pop(session_id, None)
                raise SessionUnknown
            self._see(session_id)

        async def remember(_: BaseException) -> Missing | None:
            return None if now - seen < REMEMBER_SECONDS or session_id in self._unwritten else MISSING

        try:
            return await self._policy.serve(ask, Rung(MEMORY_SESSIONS, remember))
        except AWAY as error:
            raise SessionUnknown from error

    async def end(self, session_id: str) -> Served[None]:
        """See the port."""
        _put(self._ended, session_id, self._clock.monotonic() + self._lifetime)
        self._seen.pop(session_id, None)
        self._unwritten.pop(session_id, None)

        async def delete() -> None:
            await self._client.delete(_key(session_id))

        async def later(_: BaseException) -> None:
            self.behind = True

        return await self._policy.serve(delete, Rung(MEMORY_SESSIONS, later))

    async def catch_up(self) -> None:
        """Writes to Redis, which is back, what happened meanwhile: logins that lived here, and logouts."""
        self.behind = False
        try:
            await self._catch_up()
        except AWAY:
            self.behind = True

    async def _catch_up(self) -> None:
        for session, until in list(self._unwritten.values()):
            await self._write_late(session, int(until - self._clock.monotonic()))
        now = self._clock.monotonic()
        self._ended = OrderedDict((key, until) for key, until in self._ended.items() if until > now)
        if keys := [_key(session_id) for session_id in self._ended]:
            await self._policy.call(lambda: self._client.delete(*keys))

    async def _write_late(self, session: Session, seconds: int) -> None:
        if seconds > 0:
            await self._policy.call(lambda: self._client.set(_key(session.id), session.user_id, ex=seconds))
        self._unwritten.pop(session.id, None)


_FINE: Served[None] = Served(None)


def _put(mapping: OrderedDict, key: str, value: object) -> None:  # type: ignore[type-arg]
    mapping[key] = value
    mapping.move_to_end(key)
    if len(mapping) > MAX_REMEMBERED:
        mapping.popitem(last=False)
