"""Sessions in Redis (row D2, dashboard.redis): shared by the instances, remembered by the one that has seen them.

The key ``session:<hash of the id>`` holds the user's id while the session is open, and an empty text once it has ended:
that mark keeps an instance which writes later what it could not write before from opening it again. A session is asked
for in Redis at most once a second.

While Redis is away, what this instance has seen in the last five minutes stays valid, unless it has ended: here, or on
another instance, which PostgreSQL knows (`ended_sessions`) and is asked at most once a second per session. It is also
asked when a session comes here for the first time, for some seconds after trouble with Redis, which may have come back
without the latest logouts, and once a minute. With PostgreSQL away as well, memory alone decides.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

import redis.asyncio as redis

from dashboard.degradation import MEMORY_SESSIONS
from dashboard.model import Session, SessionUnknown
from dashboard.outbound.ended_sessions import EndedSessions, hash_of
from resilience import MISSING, Clock, Missing, RowPolicy, Rung, Served
from service_kit.redis_client import AWAY

V = TypeVar("V")

CHECK_SECONDS = 1.0
REMEMBER_SECONDS = 300.0
SETTLE_SECONDS = 10.0
"""After trouble with Redis: every instance has told it by then what it missed."""
VERIFY_SECONDS = 60.0
MAX_REMEMBERED = 50_000
_BATCH = 500
_ENDED = b""
_FINE: Served[None] = Served(None)


def _key(name: str) -> str:
    return f"session:{hash_of(name)}"


def _user(user_id: str) -> str:
    return f"user:{user_id}"


class _Seen:
    """A session as this instance knows it: when its store said that it is open, and when PostgreSQL was asked."""

    __slots__ = ("asked", "verified")

    def __init__(self, asked: float, verified: float = float("-inf")) -> None:
        self.asked = asked
        self.verified = verified


class RedisSessions:
    """See the port. ``lifetime`` (seconds) is a session's longest life: ended ones are remembered that long."""

    def __init__(
        self, client: redis.Redis, policy: RowPolicy, clock: Clock, ended: EndedSessions, *, lifetime: float
    ) -> None:
        self._client = client
        self._policy = policy
        self._clock = clock
        self._database = ended
        self._lifetime = lifetime
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._ended: OrderedDict[str, float] = OrderedDict()  # names, and until when they are remembered
        self._trouble_at = float("-inf")
        # What a store has not heard of yet.
        self._unwritten: OrderedDict[str, tuple[Session, float]] = OrderedDict()
        self._unmarked: OrderedDict[str, None] = OrderedDict()
        self._unrecorded: OrderedDict[str, None] = OrderedDict()

    @property
    def behind(self) -> bool:
        """Something happened that Redis or PostgreSQL has not heard of; also when no circuit ever opened."""
        return bool(self._unwritten or self._unmarked or self._unrecorded)

    async def create(self, session: Session, seconds: float) -> Served[None]:
        """See the port. While Redis is away the session is this instance's alone, until Redis is back."""

        async def write() -> None:  # which a frozen server may do after the logout
            await self._client.set(_key(session.id), session.user_id, ex=int(seconds), nx=True)

        async def keep(_: BaseException) -> None:
            _put(self._unwritten, session.id, (session, self._clock.monotonic() + seconds))

        served = await self._policy.serve(write, Rung(MEMORY_SESSIONS, keep))
        now = self._clock.monotonic()
        # What only memory knows is asked for each time, so that each answer says so.
        _put(self._seen, session.id, _Seen(now - CHECK_SECONDS if served.degraded else now, verified=now))
        return served

    async def check(self, session_id: str, user_id: str = "") -> Served[None]:
        """See the port. Raises SessionUnknown."""
        if session_id in self._ended or _user(user_id) in self._ended:
            raise SessionUnknown
        now = self._clock.monotonic()
        seen = self._seen.get(session_id)
        if seen is not None and now - seen.asked < CHECK_SECONDS:
            return _FINE
        names = (session_id, _user(user_id))

        async def remember(_: BaseException) -> Missing | None:
            self._trouble_at = self._clock.monotonic()
            known = seen is not None and now - seen.asked < REMEMBER_SECONDS
            return None if known or session_id in self._unwritten else MISSING

        try:
            served = await self._policy.serve(lambda: self._ask(names), Rung(MEMORY_SESSIONS, remember))
        except AWAY as error:
            raise SessionUnknown from error
        seen = self._seen.get(session_id) or _Seen(now - CHECK_SECONDS)
        await self._verify(names, seen, now)
        if not served.degraded:
            seen.asked = now
        _put(self._seen, session_id, seen)
        return served

    async def _ask(self, names: tuple[str, str]) -> None:
        session, user = await self._client.mget([_key(name) for name in names])
        lost = session is None and names[0] not in self._unwritten
        if lost or session == _ENDED or user == _ENDED:
            self._seen.pop(names[0], None)
            self._unwritten.pop(names[0], None)
            raise SessionUnknown

    async def _verify(self, names: tuple[str, str], seen: _Seen, now: float) -> None:
        """Asks PostgreSQL if that is due."""
        settled = now - self._trouble_at > SETTLE_SECONDS
        if now - seen.verified >= (VERIFY_SECONDS if settled else CHECK_SECONDS):
            ended = await self._database.any(names)
            if ended:
                self._has_ended(names[:1])
            elif ended is not None:
                seen.verified = now
        if any(name in self._ended for name in names):  # known now, or meanwhile
            raise SessionUnknown

    async def end(self, session_id: str) -> Served[None]:
        """See the port."""
        return await self._end(session_id)

    async def end_all(self, user_id: str) -> Served[None]:
        """See the port."""
        return await self._end(_user(user_id))

    def end_all_later(self, user_id: str) -> None:
        """Ends all sessions of an account here and now, and elsewhere with the next `catch_up`."""
        self._has_ended([_user(user_id)])
        _put(self._unrecorded, _user(user_id), None)

    async def _end(self, name: str) -> Served[None]:
        self._has_ended([name])
        _put(self._unrecorded, name, None)  # until it is: the caller may leave before that

        async def nothing(_: BaseException) -> None:
            self._trouble_at = self._clock.monotonic()

        marking = self._policy.serve(lambda: self._mark([name]), Rung(MEMORY_SESSIONS, nothing))
        served, _ = await asyncio.gather(marking, self._record([name]))
        return served

    def _has_ended(self, names: Sequence[str]) -> None:
        for name in names:
            _put(self._ended, name, self._clock.monotonic() + self._lifetime)
            _put(self._unmarked, name, None)
            self._seen.pop(name, None)
            self._unwritten.pop(name, None)

    async def _mark(self, names: Sequence[str]) -> None:
        async with self._client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.set(_key(name), _ENDED, ex=max(1, int(self._lifetime)))
            await pipeline.execute()
        for name in names:
            self._unmarked.pop(name, None)

    async def _record(self, names: Sequence[str]) -> bool:
        done = await self._database.add(names, self._lifetime)
        for name in names if done else ():
            self._unrecorded.pop(name, None)
        return done

    def doubt_redis(self) -> None:
        """Redis is back, perhaps without what it was told last: what has ended here is marked again."""
        self._trouble_at = self._clock.monotonic()
        self._forget_old()
        for name in self._ended:
            _put(self._unmarked, name, None)

    async def catch_up(self) -> None:
        """Tells Redis and PostgreSQL what they have missed: logouts first, then logins that lived here. Best effort."""
        self._forget_old()
        await asyncio.gather(self._catch_up_redis(), self._catch_up_database())

    async def _catch_up_redis(self) -> None:
        try:
            while names := list(self._unmarked)[:_BATCH]:
                await self._policy.call(self._mark, names)
            for session, until in list(self._unwritten.values()):
                await self._write_late(session, int(until - self._clock.monotonic()))
        except AWAY:
            return  # tried again at the next turn

    async def _catch_up_database(self) -> None:
        while names := list(self._unrecorded)[:_BATCH]:
            if not await self._record(names):
                return

    async def _write_late(self, session: Session, seconds: int) -> None:
        """Only where there is nothing: neither an open session nor the mark of one that has ended meanwhile."""
        if seconds > 0 and session.id in self._unwritten:
            await self._policy.call(lambda: self._client.set(_key(session.id), session.user_id, ex=seconds, nx=True))
        self._unwritten.pop(session.id, None)

    def _forget_old(self) -> None:
        now = self._clock.monotonic()
        while self._ended and next(iter(self._ended.values())) <= now:  # in order: all are remembered equally long
            self._ended.popitem(last=False)


def _put(mapping: OrderedDict[str, V], key: str, value: V) -> None:
    mapping[key] = value
    mapping.move_to_end(key)
    if len(mapping) > MAX_REMEMBERED:
        mapping.popitem(last=False)
