"""The cluster's state in Redis: who is in which room, by instance and lease, and an inbox per instance.

| key | |
|---|---|
| `webrtc:instance:ID` | the lease |
| `webrtc:instances` | set: all instances, until they are reaped |
| `webrtc:era` | who came first: another one means that the data was lost |
| `webrtc:slot:HOST:PORT` | the instance that has this address |
| `webrtc:ended:ID` | another one has its address: the process is gone, its lease perhaps not yet |
| `webrtc:inbox:ID` | stream: what an instance is told |
| `webrtc:held:ID` | set: rooms that an instance has participants in |
| `webrtc:members:ROOM` | hash: participant's id to participant (JSON) |
| `webrtc:watch:ROOM` | set: instances that are told of the room |
| `webrtc:state:ROOM` | hash: call, mode, home of the SFU |

Each script is one step for everybody: who looks at a room and becomes a watcher misses nothing. A script that was sent
twice changes nothing the second time. Names of keys are made in scripts, so all keys are on one server.
"""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from service_kit.redis_client import SOCKET_LIMIT, create_client
from webrtc.model import Call, Member
from webrtc.outbound.redis import gone_key, load_room, outages, room_key
from webrtc.ports import StoreUnavailable
from webrtc.usecases.cluster.store import Change, Entry, Frame, Kind, Parcel, Position, Pulse, Snapshot

INBOX_LENGTH = 2_000
"""Entries that wait at most, each of up to a parcel (64 MB in all). What was read is removed: were Redis ever short of
memory, it would take leases and inboxes first."""
LEASE_SECONDS = 10
KEPT_SECONDS = 86_400
"""After the last write or look, whatever becomes of the instances."""
BLOCK_MS = 1_000
READ_COUNT = 200
REAP_COUNT = 50

_TELL = f"""
local function tell(set, kind, room, key, value, text)
  for _, one in ipairs(redis.call('SMEMBERS', set)) do
    if one ~= me then
      redis.call('XADD', 'webrtc:inbox:' .. one, 'MAXLEN', '~', {INBOX_LENGTH}, '*',
        'f', me, 'n', number, 'k', kind, 'r', room, 'p', key, 'v', value, 'w', text)
    end
  end
end
"""

_CHANGE = f"""
local me, number, kind, room, key, value, text = unpack(ARGV)
{_TELL}
local members, watch, state = 'webrtc:members:' .. room, 'webrtc:watch:' .. room, 'webrtc:state:' .. room
if kind == 'put' then
  local old = redis.call('HGET', members, key)
  if old then
    local a, b = cjson.decode(old), cjson.decode(value)
    if a.instance ~= b.instance then
      if a.joined_at > b.joined_at or (a.joined_at == b.joined_at and a.instance > b.instance) then return old end
    elseif a.joined_at > b.joined_at or (a.joined_at == b.joined_at and a.version >= b.version) then return false end
  end
  redis.call('HSET', members, key, value)
  redis.call('SADD', watch, me)
  redis.call('SADD', 'webrtc:held:' .. me, room)
  for _, one in ipairs({{members, watch, state}}) do redis.call('EXPIRE', one, {KEPT_SECONDS}) end
elseif kind == 'drop' then
  local old = redis.call('HGET', members, key)
  if old then
    local a, b = cjson.decode(old), cjson.decode(value)
    if a.instance ~= b.instance or a.joined_at > b.joined_at then return false end
    redis.call('HDEL', members, key)
    if redis.call('EXISTS', members) == 0 then redis.call('DEL', state) end
  end
elseif kind == 'call' then
  local old = redis.call('HGET', state, 'call')
  if old then
    local a, b = cjson.decode(old), cjson.decode(value)
    if a.id == b.id then return false end
    if a.started_at < b.started_at or (a.started_at == b.started_at and a.id < b.id) then return old end
  end
  redis.call('HSET', state, 'call', value)
  redis.call('EXPIRE', state, {KEPT_SECONDS})
elseif kind == 'mode' then
  redis.call('HSET', state, 'mode', key)
  redis.call('EXPIRE', state, {KEPT_SECONDS})
elseif kind == 'close' then
  redis.call('SREM', watch, me)
  redis.call('SREM', 'webrtc:held:' .. me, room)
  if redis.call('HGET', state, 'home') ~= me then return false end
  redis.call('HDEL', state, 'home')
  kind, key = 'home', ''
elseif kind == 'gone' then
  watch = 'webrtc:instances'
end
tell(watch, kind, room, key, value, text)
return false
"""

_LOOK = f"""
local me, room, watch = unpack(ARGV)
local members, state = 'webrtc:members:' .. room, 'webrtc:state:' .. room
local definition = redis.call('GET', KEYS[1])
if watch == '1' and definition then
  redis.call('SADD', 'webrtc:watch:' .. room, me)
  redis.call('SADD', 'webrtc:held:' .. me, room)
  for _, one in ipairs({{members, 'webrtc:watch:' .. room, state, 'webrtc:held:' .. me}}) do
    redis.call('EXPIRE', one, {KEPT_SECONDS})
  end
end
local last = redis.call('XREVRANGE', 'webrtc:inbox:' .. me, '+', '-', 'COUNT', 1)
local found = redis.call('HMGET', state, 'call', 'mode', 'home')
return {{definition, redis.call('EXISTS', KEYS[2]), redis.call('HVALS', members), found[1], found[2], found[3],
  last[1] and last[1][1] or '0-0', redis.call('GET', 'webrtc:era')}}
"""

_BEAT = f"""
local me, slot = unpack(ARGV)
local number = '0'
{_TELL}
local kept = redis.call('EXISTS', 'webrtc:instance:' .. me)
redis.call('SET', 'webrtc:instance:' .. me, '1', 'EX', {LEASE_SECONDS})
redis.call('SADD', 'webrtc:instances', me)
redis.call('SET', 'webrtc:era', me, 'NX')
redis.call('EXPIRE', 'webrtc:inbox:' .. me, {KEPT_SECONDS})
local before = redis.call('GET', 'webrtc:slot:' .. slot)
redis.call('SET', 'webrtc:slot:' .. slot, me, 'EX', {KEPT_SECONDS})
if before == me then before = false end
if before and redis.call('SISMEMBER', 'webrtc:instances', before) == 1 then
  redis.call('SET', 'webrtc:ended:' .. before, '1', 'EX', {KEPT_SECONDS})
  tell('webrtc:instances', 'end', '', before, '', '')
end
local others = {{}}
for _, one in ipairs(redis.call('SMEMBERS', 'webrtc:instances')) do
  if one ~= me then
    local alive = redis.call('EXISTS', 'webrtc:instance:' .. one)
    table.insert(others, {{one, alive, alive == 1 and redis.call('SMEMBERS', 'webrtc:held:' .. one) or {{}}}})
  end
end
return {{kept, others, before, redis.call('GET', 'webrtc:era')}}
"""

_REAP = f"""
local me, dead = unpack(ARGV)
local number = '0'
{_TELL}
if redis.call('EXISTS', 'webrtc:instance:' .. dead) == 1 then return 1 end
local rooms = redis.call('SPOP', 'webrtc:held:' .. dead, {REAP_COUNT})
for _, room in ipairs(rooms) do
  local members, watch, state = 'webrtc:members:' .. room, 'webrtc:watch:' .. room, 'webrtc:state:' .. room
  redis.call('SREM', watch, dead)
  local all = redis.call('HGETALL', members)
  for at = 1, #all, 2 do
    if cjson.decode(all[at + 1]).instance == dead then
      redis.call('HDEL', members, all[at])
      tell(watch, 'drop', room, all[at], all[at + 1], 'lost')
    end
  end
  if redis.call('HGET', state, 'home') == dead then
    redis.call('HDEL', state, 'home')
    tell(watch, 'home', room, '', '', '')
  end
  if redis.call('EXISTS', members) == 0 then redis.call('DEL', state) end
end
if redis.call('EXISTS', 'webrtc:held:' .. dead) == 1 then return 0 end
redis.call('SREM', 'webrtc:instances', dead)
redis.call('DEL', 'webrtc:inbox:' .. dead, 'webrtc:ended:' .. dead)
return 1
"""

_CLAIM = f"""
local me, room = unpack(ARGV)
local number = '0'
{_TELL}
local state = 'webrtc:state:' .. room
local home = redis.call('HGET', state, 'home')
if home and (home == me or (redis.call('EXISTS', 'webrtc:instance:' .. home) == 1
  and redis.call('EXISTS', 'webrtc:ended:' .. home) == 0)) then return home end
redis.call('HSET', state, 'home', me)
redis.call('EXPIRE', state, {KEPT_SECONDS})
tell('webrtc:watch:' .. room, 'home', room, me, '', '')
return me
"""

_KINDS: Final[dict[bytes, Kind]] = {
    one.encode(): one for one in ("put", "drop", "call", "mode", "home", "close", "gone", "end")
}
_member = msgspec.json.Decoder(Member).decode
_call = msgspec.json.Decoder(Call).decode
_json = msgspec.json.Encoder().encode


def create_reader(url: str) -> Redis:
    """A client for one command at a time that waits for ``BLOCK_MS``; its limit is longer by an answer's."""
    return create_client(
        url,
        max_connections=4,  # one, and those whose command was given up a moment ago
        answer_limit=BLOCK_MS / 1_000 + SOCKET_LIMIT,
        retries=0,
        protocol=2,
    )


class RedisCluster:
    """See usecases.cluster.store. ``reader`` is a client of its own for what waits long."""

    def __init__(self, client: Redis, reader: Redis) -> None:
        self._client = client
        self._reader = reader
        self._scripts = {text: client.register_script(text) for text in (_CHANGE, _LOOK, _BEAT, _REAP, _CLAIM)}

    async def look(self, instance: str, room_ids: Sequence[str], *, watch: bool = True) -> list[Snapshot]:
        """The rooms as they are now."""
        commands = [
            (_LOOK, (room_key(room_id), gone_key(room_id)), (instance, room_id, int(watch))) for room_id in room_ids
        ]
        return [_snapshot(answer) for answer in await self._run(commands)]

    async def write(self, instance: str, frames: Sequence[Frame]) -> list[Change | None]:
        """In order, in one round trip."""
        commands: list[Any] = [_command(instance, frame) for frame in frames]
        answers = await self._run(commands)
        return [_standing(frame, answer) for frame, answer in zip(frames, answers, strict=True)]

    async def read(self, instance: str, after: Position) -> list[Entry]:
        """What came after a position; waits for up to ``BLOCK_MS``. What was before it is removed; the entry at the
        position stays, for ``look`` to say how far the inbox has come.
        """
        key, last = _inbox(instance), f"{after.ms}-{after.number}"
        async with outages(), self._reader.pipeline(transaction=False) as pipeline:
            pipeline.xtrim(key, minid=last, approximate=True)
            pipeline.xread({key: last}, READ_COUNT, BLOCK_MS)
            answer: Any = (await pipeline.execute())[1]
        return [_entry(one) for _, entries in answer for one in entries]

    async def beat(self, instance: str, slot: str) -> Pulse:
        """Renews the lease and looks at the others'."""
        kept, others, before, era = await self._one(_BEAT, (instance, slot))
        alive = {name.decode(): frozenset(room.decode() for room in held) for name, lives, held in others if lives}
        dead = frozenset(name.decode() for name, lives, _ in others if not lives)
        return Pulse(bool(kept), alive, dead, before.decode() if before else "", era.decode())

    async def held(self, instance: str) -> frozenset[str]:
        """Rooms that it is in, as noted here."""
        async with outages():
            rooms: set[Any] = await self._client.smembers(_held(instance))
        return frozenset(room.decode() for room in rooms)

    async def reap(self, instance: str, dead: str) -> bool:
        """Removes a part of what a dead instance has left."""
        return bool(await self._one(_REAP, (instance, dead)))

    async def claim(self, instance: str, room_id: str) -> str:
        """The home of the room's SFU."""
        home: bytes = await self._one(_CLAIM, (instance, room_id))
        return home.decode()

    async def leave(self, instance: str, room_ids: Collection[str]) -> None:
        """Takes the instance out of everything."""
        await self.write(instance, [Frame(0, Change("close", room_id, instance)) for room_id in room_ids])
        async with outages(), self._client.pipeline(transaction=False) as pipeline:
            pipeline.srem("webrtc:instances", instance)
            pipeline.delete(_lease(instance), _inbox(instance), _held(instance))
            await pipeline.execute()

    async def _one(self, script: str, arguments: Sequence[object]) -> Any:
        (answer,) = await self._run([(script, (), arguments)])
        return answer

    async def _run(self, commands: Sequence[Any]) -> list[Any]:
        """Scripts and plain commands in one round trip; once more when Redis does not know the scripts (any more)."""
        async with outages():
            try:
                return await self._send(commands)
            except NoScriptError:
                await asyncio.gather(*(self._client.script_load(text) for text in self._scripts))
                return await self._send(commands)

    async def _send(self, commands: Sequence[Any]) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipeline:
            for script, keys, arguments in commands:
                if script:
                    pipeline.execute_command("EVALSHA", self._scripts[script].sha, len(keys), *keys, *arguments)
                else:
                    pipeline.execute_command(*arguments)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, NoScriptError):
                raise answer
            if isinstance(answer, Exception):
                raise StoreUnavailable(type(answer).__name__) from answer
        return answers


def _command(instance: str, frame: Frame) -> tuple[str, tuple[str, ...], tuple[object, ...]]:
    content = frame.content
    if isinstance(content, Parcel):
        fields = ("f", instance, "n", frame.number, "m", content.payload)
        return "", (), ("XADD", _inbox(content.instance), "MAXLEN", "~", INBOX_LENGTH, "*", *fields)
    value = content.member or content.call
    return (
        _CHANGE,
        (),
        (
            instance,
            frame.number,
            content.kind,
            content.room_id,
            content.key,
            b"" if value is None else _json(value),
            content.text,
        ),
    )


def _standing(frame: Frame, answer: Any) -> Change | None:
    """What counts in place of what was written, if so."""
    content = frame.content
    if isinstance(content, Parcel) or not isinstance(answer, bytes):
        return None
    if content.kind == "put":
        return Change("put", content.room_id, content.key, member=_member(answer))
    return Change("call", content.room_id, call=_call(answer)) if content.kind == "call" else None


def _snapshot(answer: Any) -> Snapshot:
    definition, gone, members, call, mode, home, last, era = answer
    return Snapshot(
        room=None if definition is None or gone else load_room(definition),
        deleted=bool(gone),
        members=tuple(_member(one) for one in members),
        call=None if call is None else _call(call),
        mode=(mode or b"p2p").decode(),
        home=(home or b"").decode(),
        position=_position(last),
        era=(era or b"").decode(),
    )


def _entry(raw: Any) -> Entry:
    position, fields = raw
    sender, number = (fields.get(b"f") or b"").decode(), int(fields.get(b"n") or 0)
    try:
        content = fields[b"m"] if b"m" in fields else _change(fields)
    except (KeyError, msgspec.MsgspecError, UnicodeDecodeError):
        content = None  # of a newer version: what it was about will be seen when the room is compared
    return Entry(_position(position), sender, number, content)


def _change(fields: dict[bytes, bytes]) -> Change:
    kind, value = _KINDS[fields[b"k"]], fields[b"v"]
    return Change(
        kind,
        fields[b"r"].decode(),
        fields[b"p"].decode(),
        member=_member(value) if kind in ("put", "drop") else None,
        call=_call(value) if kind == "call" else None,
        text=fields[b"w"].decode(),
    )


def _position(text: bytes) -> Position:
    ms, _, number = text.decode().partition("-")
    return Position(int(ms), int(number))


def _inbox(instance: str) -> str:
    return f"webrtc:inbox:{instance}"


def _lease(instance: str) -> str:
    return f"webrtc:instance:{instance}"


def _held(instance: str) -> str:
    return f"webrtc:held:{instance}"
