"""The write queue's store on Redis: one stream per service, shared by its instances.

Keys (``NAME`` is the service):

* ``fallback:queue:NAME`` the stream of accepted writes, ``fallback:dead:NAME`` the stream of dead letters;
* ``fallback:index:NAME`` operation id → where it is; ``fallback:entity:NAME:ENTITY`` positions of the entity's writes;
* ``fallback:attempts:NAME`` failed attempts and last error; ``fallback:applying:NAME`` how far a drainer has read;
* ``fallback:done:NAME:HOUR`` what was applied in that hour.

Each change is one script, so it happens whole or not at all. Times are the server's, so instances need not agree.
The server must persist every write (``appendfsync always``) and must not evict keys that have no expiry.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import redis.asyncio as redis
from redis.exceptions import RedisError, ResponseError

from resilience.errors import (
    BulkheadFull,
    CallTimeout,
    CircuitBreakerOpen,
    MalformedOperation,
    QueueFull,
    QueueUnavailable,
)
from resilience.queue import (
    Burial,
    Described,
    Entry,
    Operation,
    OperationRecord,
    OperationStatus,
    QueueStats,
    QueueUnanswered,
    decode,
    replayed,
)

T = TypeVar("T")
Call = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]

_NOW = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
"""

# KEYS queue dead index done done-before entity; ARGV id body limit deadline(ms, 0: none)
_APPEND = (
    _NOW
    + """
if tonumber(ARGV[4]) > 0 and now > tonumber(ARGV[4]) then return {'late', ''} end
local at = redis.call('HGET', KEYS[3], ARGV[1])
if at then return {'known', at} end
local done = redis.call('HGET', KEYS[4], ARGV[1]) or redis.call('HGET', KEYS[5], ARGV[1])
if done then return {'done', done} end
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[3]) or redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[3]) then
  return {'full', ''}
end
local position = redis.call('XADD', KEYS[1], '*', 'op', ARGV[2])
redis.call('HSET', KEYS[3], ARGV[1], position)
redis.call('RPUSH', KEYS[6], position)
return {'queued', position}
"""
)

# KEYS stream applying; ARGV after limit claim-ms (0: none) -> {now, position, body, position, body ...}
_READ = (
    _NOW
    + """
local reply = {now}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])) do
  reply[#reply + 1] = entry[1]
  reply[#reply + 1] = entry[2][2]
end
if tonumber(ARGV[3]) > 0 and #reply > 1 then redis.call('SET', KEYS[2], reply[#reply - 1], 'PX', ARGV[3]) end
return reply
"""
)

# KEYS queue dead index attempts done; ARGV entity-prefix ttl what, as JSON: "applied" and "buried" are lists of columns
# (positions, ids, entities, notes or letters). One argument, as thousands of them cost the client more than the server.
# All of it may be repeated: only a burial adds something, and only with the entry that it removes.
_SETTLE = """
local prefix, what = ARGV[1], cjson.decode(ARGV[3])
local tried = redis.call('EXISTS', KEYS[4]) == 1
local function leave(position, id, entity)
  redis.call('LREM', prefix .. entity, 1, position)
  if tried then redis.call('HDEL', KEYS[4], id, id .. ':error') end
end
local positions, ids, entities, notes = unpack(what.applied)
if #positions > 0 then
  redis.call('XDEL', KEYS[1], unpack(positions))
  redis.call('HDEL', KEYS[3], unpack(ids))
  local done = {}
  for i = 1, #ids do
    leave(positions[i], ids[i], entities[i])
    done[2 * i - 1], done[2 * i] = ids[i], notes[i]
  end
  redis.call('HSET', KEYS[5], unpack(done))
  redis.call('EXPIRE', KEYS[5], ARGV[2])
end
positions, ids, entities, notes = unpack(what.buried)
for i = 1, #positions do
  local position, id = positions[i], ids[i]
  if redis.call('XDEL', KEYS[1], position) == 1 then
    local at = redis.call('XADD', KEYS[2], '*', 'letter', notes[i])
    if id ~= '' then leave(position, id, entities[i]) end
    redis.call('HSET', KEYS[3], id ~= '' and id or position, 'dead:' .. at)
  end
end
"""

# KEYS index attempts; ARGV id error -> how many there were; 0 when the operation waits no more: it has been settled
_NOTE_FAILURE = """
local at = redis.call('HGET', KEYS[1], ARGV[1])
if not at or string.sub(at, 1, 5) == 'dead:' then return 0 end
redis.call('HSET', KEYS[2], ARGV[1] .. ':error', ARGV[2])
return redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
"""

# KEYS dead index; ARGV id position. The index is left alone when the letter is gone: a replay may have taken it.
_DISCARD = """
if redis.call('XDEL', KEYS[1], ARGV[2]) == 0 then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
return 1
"""

# KEYS queue dead index; ARGV id position body entity-prefix entity limit: the letter becomes the newest entry
_REPLAY = """
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[6]) then return -1 end
if redis.call('XDEL', KEYS[2], ARGV[2]) == 0 then return 0 end
local position = redis.call('XADD', KEYS[1], '*', 'op', ARGV[3])
redis.call('HSET', KEYS[3], ARGV[1], position)
redis.call('RPUSH', ARGV[4] .. ARGV[5], position)
return 1
"""

# KEYS queue dead -> {now, depth, dead, oldest position}
_STATS = (
    _NOW
    + """
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
return {now, redis.call('XLEN', KEYS[1]), redis.call('XLEN', KEYS[2]), first[1] and first[1][1] or ''}
"""
)

# KEYS entity queue -> bodies and positions of the entity's waiting writes
_WAITING = """
local reply = {}
for _, position in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
  local entry = redis.call('XRANGE', KEYS[2], position, position)[1]
  if entry then
    reply[#reply + 1] = position
    reply[#reply + 1] = entry[2][2]
  end
end
return reply
"""

Letters = list[tuple[str, dict[str, Any]]]

_DONE_SECONDS = 3600
_APPLYING_MS = 5000
_MAX_ATTEMPTS_NOTE = 300


async def _unguarded(action: Callable[[], Awaitable[Any]]) -> Any:
    return await action()


def _milliseconds(position: str) -> int:
    return int(position.partition("-")[0])


class RedisQueueStore:
    """See the module. ``call`` runs each access under the policy of the Redis dependency; ``timeout`` (seconds) is its
    bound, after which an append that is still under way must not take effect any more."""

    def __init__(
        self,
        client: redis.Redis,
        name: str,
        *,
        limit: int = 10_000,
        call: Call = _unguarded,
        timeout: float = 0.6,
        loads: Callable[[bytes], Any] = json.loads,
    ) -> None:
        self.name = name
        self._client: Any = client  # its stubs know neither scripts nor undecoded answers
        self._limit = limit
        self._guard = call
        self._timeout = timeout
        self._loads = loads
        self._clock_offset: float | None = None
        keys = {key: f"fallback:{key}:{name}" for key in ("queue", "dead", "index", "attempts", "applying")}
        self._queue, self._dead, self._index = keys["queue"], keys["dead"], keys["index"]
        self._attempts, self._applying = keys["attempts"], keys["applying"]
        self._entity_prefix = f"fallback:entity:{name}:"
        self._append_script = self._client.register_script(_APPEND)
        self._read_script = self._client.register_script(_READ)
        self._settle_script = self._client.register_script(_SETTLE)
        self._note_script = self._client.register_script(_NOTE_FAILURE)
        self._discard_script = self._client.register_script(_DISCARD)
        self._replay_script = self._client.register_script(_REPLAY)
        self._stats_script = self._client.register_script(_STATS)
        self._waiting_script = self._client.register_script(_WAITING)

    async def _call(self, action: Callable[[], Awaitable[T]]) -> T:
        try:
            result: T = await self._guard(action)
        except (RedisError, OSError, CallTimeout, CircuitBreakerOpen, BulkheadFull) as error:
            raise QueueUnavailable(f"the write queue of {self.name} cannot be reached") from error
        return result

    def _done_keys(self) -> tuple[str, str]:
        hour = int(time.time()) // _DONE_SECONDS
        return f"fallback:done:{self.name}:{hour}", f"fallback:done:{self.name}:{hour - 1}"

    def _deadline(self) -> int:
        """The append's own deadline on the server's clock, ms; 0 before the server's clock is known."""
        if self._clock_offset is None:
            return 0
        return int((time.monotonic() + self._clock_offset + self._timeout) * 1000)

    def _heard(self, server_ms: int) -> None:
        self._clock_offset = server_ms / 1000 - time.monotonic()

    async def append(self, operation: Operation) -> OperationRecord:
        """See QueueStore.append. Raises QueueFull, QueueUnavailable, QueueUnanswered."""
        keys = [self._queue, self._dead, self._index, *self._done_keys(), self._entity_prefix + operation.entity]
        args: list[Any] = [operation.id, operation.encode(), self._limit, self._deadline()]
        said, at = await self._append(keys, args)
        match said:
            case b"queued":
                stamped = replace(operation, accepted_at=_milliseconds(at.decode()) / 1000)
                return OperationRecord(stamped, OperationStatus.QUEUED)
            case b"known":
                return await self._known(operation)
            case b"done":
                return OperationRecord(_from_note(operation.id, at), OperationStatus.APPLIED)
            case b"full":
                raise QueueFull(f"the write queue of {self.name} is full ({self._limit})")
            case _:
                raise QueueUnavailable(f"the write queue of {self.name} answered too late")

    async def _append(self, keys: Sequence[str], args: Sequence[Any]) -> tuple[bytes, bytes]:
        sent = False

        async def send() -> tuple[bytes, bytes]:
            nonlocal sent
            # A server that is not there is found out while connecting, before anything has been sent.
            pool = self._client.connection_pool
            await pool.release(await pool.get_connection())
            sent = True
            said, at = await self._append_script(keys=keys, args=args)
            return said, at

        try:
            return await self._call(send)
        except QueueUnavailable as error:
            if not sent or isinstance(error.__cause__, ResponseError):  # not begun, or the server said no
                raise
            raise QueueUnanswered(f"the write queue of {self.name} has not answered") from error

    async def _known(self, operation: Operation) -> OperationRecord:
        """It was accepted before. What has become of it is a second question, whose failure takes nothing back."""
        try:
            found = await self.record(operation.id)
        except QueueUnavailable:
            return OperationRecord(operation, OperationStatus.QUEUED)
        return found or OperationRecord(operation, OperationStatus.DEAD, "discarded")

    def _entry(self, position: bytes, body: bytes) -> Entry:
        at = position.decode()
        try:
            return Entry(at, body, decode(body, _milliseconds(at) / 1000, self._loads))
        except MalformedOperation:
            return Entry(at, body, None)

    async def read(self, limit: int, after: str = "", *, claim: bool = False) -> tuple[list[Entry], float]:
        """See QueueStore.read."""
        start = f"({after}" if after else "-"
        keys = [self._queue, self._applying]
        args: list[Any] = [start, limit, _APPLYING_MS if claim else 0]
        now, *flat = await self._call(lambda: self._read_script(keys=keys, args=args))
        self._heard(now)
        return [self._entry(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)], now / 1000

    async def settle(self, applied: Sequence[Entry], buried: Sequence[Burial]) -> None:
        """See QueueStore.settle."""
        if not applied and not buried:
            return
        done = [(entry.position, entry.operation) for entry in applied if entry.operation]
        rows = [(position, of.id, of.entity, _note(of)) for position, of in done]
        dead = [_burial_row(burial) for burial in buried]
        what = json.dumps({"applied": _columns(rows), "buried": _columns(dead)})
        keys = [self._queue, self._dead, self._index, self._attempts, self._done_keys()[0]]
        args: list[Any] = [self._entity_prefix, 2 * _DONE_SECONDS, what]
        await self._call(lambda: self._settle_script(keys=keys, args=args))

    async def note_failure(self, operation_id: str, error: str) -> int:
        """See QueueStore.note_failure."""
        keys, args = [self._index, self._attempts], [operation_id, error[:_MAX_ATTEMPTS_NOTE]]
        return int(await self._call(lambda: self._note_script(keys=keys, args=args)))

    async def record(self, operation_id: str) -> OperationRecord | None:
        """See QueueStore.record. Asks twice at most: an entry may be settled or buried between the two trips."""
        found, gone = await self._look_up(operation_id)
        return (await self._look_up(operation_id))[0] if gone else found

    async def _look_up(self, operation_id: str) -> tuple[OperationRecord | None, bool]:
        """The record, and whether the entry had gone elsewhere when it was looked for at its place."""
        done, before = self._done_keys()

        async def look() -> list[Any]:
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.hget(self._index, operation_id)
                pipe.hget(done, operation_id)
                pipe.hget(before, operation_id)
                pipe.get(self._applying)
                return list(await pipe.execute())

        at, note, older_note, applying = await self._call(look)
        if at is not None:
            found = await self._record_at(at.decode(), applying.decode() if applying else "")
            return found, found is None
        note = note or older_note
        return (OperationRecord(_from_note(operation_id, note), OperationStatus.APPLIED) if note else None), False

    async def _record_at(self, at: str, applying: str) -> OperationRecord | None:
        if at.startswith("dead:"):
            letters = await self._letters(1, at[5:], at[5:])
            return _dead_record(letters[0][1]) if letters else None
        found = await self._call(lambda: self._client.xrange(self._queue, at, at))
        if not found:
            return None
        status = OperationStatus.APPLYING if applying and _order(at) <= _order(applying) else OperationStatus.QUEUED
        return OperationRecord(self._entry(*_first(found)).operation, status)

    async def is_waiting(self, entity: str) -> bool:
        """See QueueStore.is_waiting."""
        return bool(await self._call(lambda: self._client.exists(self._entity_prefix + entity)))

    async def waiting(self, entity: str) -> list[Operation]:
        """See QueueStore.waiting."""
        keys = [self._entity_prefix + entity, self._queue]
        flat = await self._call(lambda: self._waiting_script(keys=keys))
        entries = (self._entry(flat[i], flat[i + 1]) for i in range(0, len(flat), 2))
        return [entry.operation for entry in entries if entry.operation]

    async def stats(self) -> QueueStats:
        """Depth, age of the oldest entry in seconds, and number of dead letters."""
        now, depth, dead, oldest = await self._call(lambda: self._stats_script(keys=[self._queue, self._dead]))
        self._heard(now)
        age = (now - _milliseconds(oldest.decode())) / 1000 if oldest else 0.0
        return QueueStats(depth, max(0.0, age), dead)

    async def list(self, limit: int, after: str = "") -> Described:
        """Waiting operations, oldest first, without their payload; ``after`` is the last seen ``position``."""
        entries, now = await self.read(limit, after)
        if not entries:
            return []
        tried = await self._call(lambda: self._client.hgetall(self._attempts))
        return [_describe(entry, now, tried) for entry in entries]

    async def _letters(self, limit: int, start: str, end: str = "+") -> Letters:
        found = await self._call(lambda: self._client.xrange(self._dead, start, end, count=limit))
        return [(at.decode(), json.loads(fields[b"letter"])) for at, fields in found]

    async def dead(self, limit: int, after: str = "") -> Described:
        """Dead letters, oldest first, without their payload; ``after`` is the last seen ``position``."""
        letters = await self._letters(limit, f"({after}" if after else "-")
        return [_describe_letter(at, letter) for at, letter in letters]

    async def _letter_of(self, operation_id: str) -> tuple[str, dict[str, Any]] | None:
        at = await self._call(lambda: self._client.hget(self._index, operation_id))
        if at is None or not at.startswith(b"dead:"):
            return None
        position = at[5:].decode()
        letters = await self._letters(1, position, position)
        return letters[0] if letters else None

    async def replay(self, operation_id: str) -> bool:
        """Puts a dead letter back at the end of the queue as its next generation; False when there is no such letter.

        Raises QueueFull, and MalformedOperation for a letter that was never an operation: it can only be discarded.
        """
        found = await self._letter_of(operation_id)
        if found is None:
            return False
        position, letter = found
        again = replayed(decode(letter["body"].encode(), 0.0, json.loads))
        args: list[Any] = [operation_id, position, again.encode(), self._entity_prefix, again.entity, self._limit]
        keys = [self._queue, self._dead, self._index]
        done = await self._call(lambda: self._replay_script(keys=keys, args=args))
        if done < 0:
            raise QueueFull(f"the write queue of {self.name} is full ({self._limit})")
        return bool(done)

    async def discard(self, operation_id: str) -> bool:
        """Deletes a dead letter for good; False when there is no such letter."""
        found = await self._letter_of(operation_id)
        if found is None:
            return False
        keys, args = [self._dead, self._index], [operation_id, found[0]]
        return bool(await self._call(lambda: self._discard_script(keys=keys, args=args)))

    async def clear(self) -> int:
        """Discards every dead letter; returns how many. Waiting writes are promises and stay."""
        count, before = 0, -1
        while count > before and (letters := await self.dead(500)):
            before = count
            for letter in letters:
                count += await self.discard(letter["id"])
        return count


def _order(position: str) -> tuple[int, int]:
    milliseconds, _, sequence = position.partition("-")
    return int(milliseconds), int(sequence or 0)


def _first(found: Any) -> tuple[bytes, bytes]:
    position, fields = found[0]
    return position, fields[b"op"]


def _note(operation: Operation) -> str:
    """What is remembered of an applied operation: enough to answer for it, not its payload."""
    return "\n".join((operation.owner, operation.kind, operation.entity, operation.fingerprint))


def _from_note(operation_id: str, note: bytes) -> Operation:
    owner, kind, entity, fingerprint = note.decode().split("\n")
    return Operation(operation_id, kind, entity, owner, {}, fingerprint)


def _columns(rows: Sequence[tuple[str, str, str, str]]) -> tuple[Sequence[str], ...]:
    return tuple(zip(*rows, strict=True)) or ((), (), (), ())


def _burial_row(burial: Burial) -> tuple[str, str, str, str]:
    of = burial.entry.operation
    return burial.entry.position, of.id if of else "", of.entity if of else "", _letter(burial)


def _letter(burial: Burial) -> str:
    body = burial.entry.body.decode(errors="replace")
    document = {"position": burial.entry.position, "body": body, "reason": burial.reason, "error": burial.error}
    return json.dumps(document)


def _dead_record(letter: dict[str, Any]) -> OperationRecord:
    try:
        operation = decode(letter["body"].encode(), _milliseconds(letter["position"]) / 1000)
    except MalformedOperation:
        operation = None
    return OperationRecord(operation, OperationStatus.DEAD, letter["error"])


def _describe(entry: Entry, now: float, tried: dict[bytes, bytes]) -> dict[str, Any]:
    operation = entry.operation
    if operation is None:
        return {"id": entry.position, "position": entry.position, "kind": "malformed"}
    key = operation.id.encode()
    error = tried.get(key + b":error")
    return {
        "id": operation.id,
        "position": entry.position,
        "kind": operation.kind,
        "entity": operation.entity,
        "age_seconds": max(0.0, now - operation.accepted_at),
        "attempts": int(tried.get(key, 0)),
        "last_error": error.decode() if error else None,
    }


def _describe_letter(at: str, letter: dict[str, Any]) -> dict[str, Any]:
    operation = _dead_record(letter).operation
    return {
        "id": operation.id if operation else letter["position"],
        "position": at,
        "kind": operation.kind if operation else "malformed",
        "entity": operation.entity if operation else "",
        "reason": letter["reason"],
        "error": letter["error"],
        "accepted_at": _milliseconds(letter["position"]) / 1000,
        "buried_at": _milliseconds(at) / 1000,
    }


__all__ = ["RedisQueueStore"]
