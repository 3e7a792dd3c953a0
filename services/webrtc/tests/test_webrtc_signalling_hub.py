"""The hub without sockets: two of them that share rooms, the media server's part, and the bounds of what is kept."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resilience import FakeClock
from services.webrtc.tests.signalling_world import ROOM, SECRET, Ice, Limits, eventually
from webrtc.model import Call, Close, Grants, Member, Opened, Room, RoomUnknown
from webrtc.outbound.tokens import JwtSigner
from webrtc.ports import Local
from webrtc.usecases.signalling.defaults import NoCalls, NoMeter
from webrtc.usecases.signalling.dispatch import Dispatcher
from webrtc.usecases.signalling.hub import Hub, Parts
from webrtc.usecases.signalling.limits import Flood, TokenBucket
from webrtc.usecases.signalling.messages import KINDS
from webrtc.usecases.signalling.participant import Outbox, Participant

TOKENS = JwtSigner(SECRET)


class Line:
    """A socket that keeps what it was given."""

    def __init__(self) -> None:
        self.paused_at: float | None = None
        self.buffered = 0
        self.texts: list[dict[str, Any]] = []
        self.code = 0
        self.pings = 0

    def send(self, text: bytes) -> None:
        self.texts.append(json.loads(text))

    def ping(self) -> None:
        self.pings += 1

    def close(self, code: Close, reason: str = "") -> None:
        self.code = self.code or int(code)

    def kinds(self) -> list[str]:
        return [text["type"] for text in self.texts]

    def last(self, kind: str) -> dict[str, Any]:
        return [text for text in self.texts if text["type"] == kind][-1]


class Town:
    """Instances that hear of each other at once, as long as they are connected."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.sides: dict[str, Side] = {}
        self.cut = False
        self.home = "one"

    def hub(self, name: str, **parts: Any) -> "Side":
        self.sides[name] = Side(self, name, parts)
        return self.sides[name]


class Side:
    """One instance, and its cluster."""

    def __init__(self, town: Town, name: str, parts: dict[str, Any]) -> None:
        self.instance = name
        self.town = town
        self.local: Local
        self.calls = Journal()
        made: dict[str, Any] = {
            "cluster": self,
            "tokens": TOKENS,
            "ice": Ice(),
            "meter": NoMeter,
            "calls": self.calls,
            "degraded": list,
            "note": lambda _event, /, **_fields: None,
            "clock": town.clock,
        }
        self.hub = Hub(Parts(**(made | parts)))
        self.dispatcher = Dispatcher(self.hub)

    async def join(self, user: str, resume: str = "", seq: int = 0, **grants: bool) -> tuple[Participant, Line]:
        line = Line()
        token = TOKENS.sign(ROOM, user, time.time(), 600, grants=Grants(**grants))
        participant = await self.hub.join(line, token, resume, seq)
        assert participant is not None, line.texts
        return participant, line

    def say(self, who: Participant, kind: str, /, **fields: Any) -> None:
        self.dispatcher.receive(who, json.dumps({"type": kind, **fields}).encode())

    # -- the cluster

    @property
    def alone(self) -> bool:
        return self.town.cut

    def attach(self, local: Local) -> None:
        self.local = local

    def _others(self) -> list[Local]:
        return [] if self.town.cut else [side.local for side in self.town.sides.values() if side is not self]

    async def open(self, room_id: str) -> Opened:
        await asyncio.sleep(0)
        return Opened(Room(ROOM, "Daily", 3, "owner", 0), await self.members(room_id))

    async def members(self, room_id: str) -> tuple[Member, ...]:
        return tuple(member for local in self._others() for member in local.local_members(room_id))

    def joined(self, room_id: str, member: Member) -> None:
        for local in self._others():
            local.remote_joined(room_id, member)

    def updated(self, room_id: str, member: Member) -> None:
        for local in self._others():
            local.remote_updated(room_id, member)

    def left(self, room_id: str, member: Member, reason: str) -> None:
        for local in self._others():
            local.remote_left(room_id, member.id, reason)

    def closed(self, room_id: str) -> None:
        pass

    def called(self, room_id: str, call: Call) -> None:
        for local in self._others():
            local.remote_call(room_id, call)

    def moded(self, room_id: str, mode: str, reason: str) -> None:
        for local in self._others():
            local.remote_mode(room_id, mode, reason)

    def deleted(self, room_id: str) -> None:
        for local in self._others():
            local.room_deleted(room_id)

    def _at(self, to: Member) -> Local | None:
        return None if self.town.cut else self.town.sides[to.instance].local

    def send(self, room_id: str, to: Member, message: bytes) -> bool:
        if (local := self._at(to)) is not None:
            local.deliver(room_id, to.id, message)
        return local is not None

    def close(self, room_id: str, to: Member, code: Close) -> bool:
        if (local := self._at(to)) is not None:
            local.close_member(room_id, to.id, code)
        return local is not None

    def signal_sfu(self, room_id: str, member_id: str, data: bytes) -> bool:
        if not self.town.cut:
            self.town.sides[self.town.home].local.sfu_signal(room_id, member_id, data)
        return not self.town.cut

    async def sfu_home(self, room_id: str) -> str:
        return self.instance if self.town.cut else self.town.home


class Journal(NoCalls):
    """The history as a list."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def started(self, call: Call, room: Room) -> None:
        self.lines.append(("started", call.id))

    def joined(self, call: Call, room: Room, member: Member, at: float) -> None:
        self.lines.append(("joined", member.user_id))

    def left(self, call: Call, room: Room, member: Member, at: float, quality: Mapping[str, object]) -> None:
        self.lines.append(("left", member.user_id))

    def ended(self, call: Call, room: Room, at: float) -> None:
        self.lines.append(("ended", call.id))

    def renamed(self, old: Call, new: Call, room: Room) -> None:
        self.lines.append(("renamed", new.id))


class Server:
    """A media server that answers."""

    name = "sfu"

    def __init__(self) -> None:
        self.did: list[tuple[str, ...]] = []
        self.hub: Hub

    async def prepare(self) -> None:
        self.did.append(("prepare",))

    async def enter(self, room_id: str, member_id: str, publishes: bool) -> None:
        self.did.append(("enter", member_id))

    async def leave(self, room_id: str, member_id: str) -> None:
        self.did.append(("leave", member_id))

    async def close(self, room_id: str) -> None:
        self.did.append(("close", room_id))

    async def signal(self, room_id: str, member_id: str, data: bytes) -> None:
        self.did.append(("signal", member_id))
        self.hub.tell(room_id, member_id, b'{"answer":%b}' % data)


@pytest.fixture
def town() -> Town:
    return Town()


# -- two instances


async def test_peers_on_two_instances_are_one_room(town: Town) -> None:
    one, two = town.hub("one"), town.hub("two")
    ada, at_ada = await one.join("ada")
    bob, at_bob = await two.join("bob", moderate=True)
    assert {p["user_id"] for p in at_bob.last("welcome")["participants"]} == {"ada", "bob"}
    assert at_ada.last("joined")["participant"]["id"] == bob.member.id
    one.say(ada, "signal", to=bob.member.id, data=[1])
    one.say(ada, "data", data="all")
    one.say(ada, "media", audio=True, video=True)
    assert (at_bob.last("signal")["data"], at_bob.last("data")["data"]) == ([1], "all")
    assert [text["seq"] for text in at_bob.texts] == list(range(1, len(at_bob.texts) + 1))
    assert at_bob.last("updated")["participant"]["video"] is True
    two.say(bob, "mute", participant=ada.member.id, kind="video")
    assert at_ada.last("mute")["by"] == bob.member.id
    two.say(bob, "kick", participant=ada.member.id)
    assert at_ada.code == 4403
    assert at_bob.last("left")["reason"] == "kicked"


async def test_one_call_is_one_call_everywhere(town: Town) -> None:
    one, two = town.hub("one"), town.hub("two")
    ada, _ = await one.join("ada")
    bob, at_bob = await two.join("bob")
    call = two.calls.lines[0][1]
    assert at_bob.last("welcome")["call_id"] == call
    assert (one.calls.lines, two.calls.lines) == ([("joined", "ada")], [("started", call), ("joined", "bob")])
    one.hub.leave(ada, "left")
    two.hub.leave(bob, "left")
    assert one.calls.lines[1:] == [("left", "ada")]
    assert two.calls.lines[2:] == [("left", "bob"), ("ended", call)]


async def test_the_earlier_of_two_calls_counts(town: Town) -> None:
    one = town.hub("one")
    _, line = await one.join("ada")
    await one.join("bob")
    one.local.remote_call(ROOM, Call("call_earlier", 1.0))
    assert one.calls.lines[-1] == ("renamed", "call_earlier")
    assert line.kinds() == ["welcome", "joined"]


async def test_a_full_room_is_full_everywhere(town: Town) -> None:
    one, two = town.hub("one"), town.hub("two")
    for side, user in ((one, "a"), (one, "b"), (two, "c")):
        await side.join(user)
    line = Line()
    assert await two.hub.join(line, TOKENS.sign(ROOM, "d", time.time(), 600)) is None
    assert line.code == 4409


async def test_who_comes_back_to_another_instance_is_the_same_and_never_left(town: Town) -> None:
    one, two = town.hub("one"), town.hub("two")
    bob, at_bob = await one.join("bob")
    _, at_ada = await one.join("ada")
    _, at_cyd = await two.join("cyd")
    back, line = await two.join("bob", at_bob.last("welcome")["resume"], 2)
    assert back.member.id == bob.member.id
    assert line.last("welcome")["resumed"] is False
    assert at_bob.code == 4421
    assert "left" not in at_ada.kinds() + at_cyd.kinds()
    assert at_cyd.last("updated")["participant"]["id"] == bob.member.id
    assert len(await one.hub.members(ROOM)) == 3
    one.hub.dropped(bob, at_bob, 1006)
    one.local.remote_joined(ROOM, replace(bob.member, joined_at=0.0))  # late news of the old one
    assert {member.instance for member in await one.hub.members(ROOM)} == {"one", "two"}


async def test_those_of_a_draining_instance_are_away_for_a_while(town: Town) -> None:
    one, two = town.hub("one"), town.hub("two")
    _, at_ada = await one.join("ada")
    bob, at_bob = await two.join("bob")
    two.hub.drain()
    assert at_bob.code == 1012
    assert at_ada.kinds() == ["welcome", "joined"]
    await town.clock.advance(4)
    two.hub.tick()
    assert "updated" not in at_ada.kinds()
    one.hub.tick()
    assert at_ada.last("updated")["participant"]["away"] is True
    back, _ = await one.join("bob", at_bob.last("welcome")["resume"], 1)
    assert back.member.id == bob.member.id
    assert at_ada.last("updated")["participant"]["away"] is False
    assert "left" not in at_ada.kinds()


async def test_those_of_a_draining_instance_who_stay_away_have_left(town: Town) -> None:
    one, two = town.hub("one"), town.hub("two")
    _, at_ada = await one.join("ada")
    await two.join("bob")
    two.hub.drain()
    await town.clock.advance(30.5)
    for participant in one.hub.everybody():
        participant.heard_at = town.clock.monotonic()
    one.hub.tick()
    assert at_ada.last("left")["reason"] == "lost"
    assert ("left", "bob") in one.calls.lines


async def test_alone_the_others_stay_in_the_roster_and_are_said_to_be_out_of_reach(town: Town) -> None:
    one, two = town.hub("one"), town.hub("two")
    ada, at_ada = await one.join("ada", moderate=True)
    bob, _ = await two.join("bob")
    town.cut = True
    one.local.set_alone(True)
    assert at_ada.last("degraded")["single_instance"] is True
    for kind, fields in (("signal", {"data": 1}), ("data", {"data": 1}), ("mute", {"kind": "audio"})):
        to = {"participant": bob.member.id} if kind == "mute" else {"to": bob.member.id}
        one.say(ada, kind, **to, **fields)
        assert at_ada.texts[-1]["error"] == "PEER_UNREACHABLE"
        assert at_ada.texts[-1]["retry_after"] > 0
    one.say(ada, "kick", participant=bob.member.id)
    assert at_ada.texts[-1]["error"] == "PEER_UNREACHABLE"
    assert len(await one.hub.members(ROOM)) == 2
    town.cut = False
    one.local.set_alone(False)
    assert at_ada.last("degraded")["single_instance"] is False


# -- the media server


def _sfu(town: Town, name: str) -> tuple[Side, Server]:
    server = Server()
    side = town.hub(name, media=server)
    server.hub = side.hub
    return side, server


async def test_a_third_participant_brings_the_media_server(town: Town) -> None:
    one, server = _sfu(town, "one")
    people = [await one.join(user) for user in ("a", "b", "c")]
    lines = [line for _, line in people]
    await eventually(lambda: all("media" in line.kinds() for line in lines))
    assert lines[0].last("media") | {"seq": 0} == {"type": "media", "mode": "sfu", "reason": "size", "seq": 0}
    one.say(people[0][0], "signal", to="sfu", data={"pc": "pub"})
    await eventually(lambda: "signal" in lines[0].kinds())
    assert lines[0].last("signal") | {"seq": 0} == {
        "type": "signal",
        "from": "sfu",
        "data": {"answer": {"pc": "pub"}},
        "seq": 0,
    }
    for participant, _ in people:
        one.hub.leave(participant, "left")
    await eventually(lambda: server.did[-1] == ("close", ROOM))
    ids = [participant.member.id for participant, _ in people]
    assert [did for did in server.did if did[0] == "enter"] == [("enter", one_id) for one_id in ids]
    await one.hub.media.close()


@pytest.mark.parametrize(
    ("relayed", "stun_only", "reason"), [(False, True, "path"), (True, False, "path"), (False, False, "")]
)
async def test_a_failed_path_brings_it_where_no_relay_can_help(
    town: Town, relayed: bool, stun_only: bool, reason: str
) -> None:
    ice = Ice()
    ice.stun_only = stun_only
    server = Server()
    one = town.hub("one", media=server, ice=ice)
    ada, line = await one.join("ada")
    bob, _ = await one.join("bob")
    one.say(ada, "path", peer=bob.member.id, state="failed", relayed=relayed)
    await asyncio.sleep(0.01)
    assert [text["reason"] for text in line.texts if text["type"] == "media"] == ([reason] if reason else [])
    await one.hub.media.close()


async def test_the_room_has_one_media_server_for_all_instances(town: Town) -> None:
    (one, server), (two, other) = _sfu(town, "one"), _sfu(town, "two")
    ada, at_ada = await one.join("ada")
    await one.join("bob")
    cyd, at_cyd = await two.join("cyd")
    await eventually(lambda: "media" in at_cyd.kinds() and "media" in at_ada.kinds() and len(server.did) >= 3)
    two.say(cyd, "signal", to="sfu", data=7)
    await eventually(lambda: "signal" in at_cyd.kinds())
    assert at_cyd.last("signal")["data"] == {"answer": 7}
    assert not other.did
    # Its own participants leave; the others' media still goes through it.
    for participant in list(one.hub.everybody()):
        one.hub.leave(participant, "left")
    two.say(cyd, "signal", to="sfu", data=8)
    await eventually(lambda: at_cyd.last("signal")["data"] == {"answer": 8})
    two.hub.leave(cyd, "left")
    await eventually(lambda: server.did[-1][0] == "close")
    assert one.hub.sizes == two.hub.sizes == (0, 0)
    assert ada.socket is None
    for side in (one, two):
        await side.hub.media.close()


async def test_alone_an_instance_has_its_own_media_server_until_it_is_not(town: Town) -> None:
    (one, _), (two, other) = _sfu(town, "one"), _sfu(town, "two")
    await one.join("ada")
    await one.join("bob")
    cyd, line = await two.join("cyd")
    await eventually(lambda: "media" in line.kinds())
    town.cut = True
    two.local.set_alone(True)
    two.say(cyd, "signal", to="sfu", data=1)
    await eventually(lambda: line.last("media")["reason"] == "alone")
    assert ("enter", cyd.member.id) in other.did
    town.cut = False
    two.local.set_alone(False)
    await eventually(lambda: line.last("media")["reason"] == "merged")
    for side in (one, two):
        await side.hub.media.close()


# -- opening


async def test_many_that_open_a_room_at_once_are_in_the_same_one(town: Town) -> None:
    one = town.hub("one")
    people = await asyncio.gather(*(one.join(user) for user in ("a", "b", "c")))
    assert one.hub.sizes == (1, 3)
    assert {participant.room.id for participant, _ in people} == {ROOM}
    assert len({id(participant.room) for participant, _ in people}) == 1


async def test_a_room_that_takes_too_long_to_open_leaves_nothing_behind(town: Town) -> None:
    one = town.hub("one", limits=Limits(open_seconds=0.01))
    opened = asyncio.Event()

    async def slow(room_id: str) -> Opened:
        await opened.wait()
        return Opened(Room(ROOM, "Daily", 3, "owner", 0))

    one.open = slow  # type: ignore[method-assign]
    line = Line()
    assert await one.hub.join(line, TOKENS.sign(ROOM, "a", time.time(), 600)) is None
    assert line.code == 4503
    opened.set()
    await eventually(lambda: one.hub.sizes[0] == 1)
    one.hub.tick()
    assert one.hub.sizes == (0, 0)


async def test_the_last_one_here_who_lost_the_connection_is_replaced_in_a_full_room(town: Town) -> None:
    one, two = town.hub("one"), town.hub("two")
    _, at_ada = await one.join("ada")
    await one.join("cyd")
    bob, at_bob = await two.join("bob")
    two.hub.dropped(bob, at_bob, 1001)
    again, line = await two.join("bob")
    assert again.member.id != bob.member.id
    assert two.hub.rooms[ROOM] is again.room
    assert at_ada.kinds()[-2:] == ["left", "joined"]
    assert len(line.last("welcome")["participants"]) == 3


async def test_a_room_nobody_knows(town: Town) -> None:
    one = town.hub("one")

    async def unknown(room_id: str) -> Opened:
        raise RoomUnknown

    one.open = unknown  # type: ignore[method-assign]
    line = Line()
    await one.hub.join(line, TOKENS.sign(ROOM, "a", time.time(), 600))
    assert (line.code, line.texts[0]["error"]) == (4404, "NO_ROOM")


# -- bounds

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
_FIELDS = ("to", "data", "audio", "video", "participant", "kind", "report", "peer", "state", "relayed", "seq")
_MESSAGES = st.fixed_dictionaries(
    {"type": st.sampled_from([*KINDS, "x"])},
    optional={name: _JSON | st.sampled_from(["sfu", "p_1", "connected", "audio", "failed"]) for name in _FIELDS},
).map(lambda message: json.dumps(message).encode())


@given(texts=st.lists(_MESSAGES | st.binary(max_size=60), min_size=1, max_size=12))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_a_client_says_the_others_get_text_in_order(texts: list[bytes]) -> None:
    one = Town().hub("one")
    eve, _ = await one.join("eve", moderate=True)
    _, line = await one.join("ada")
    for text in texts:
        if eve.socket is not None:
            one.dispatcher.receive(eve, text)
    assert [text["seq"] for text in line.texts] == list(range(1, len(line.texts) + 1))
    assert set(line.kinds()) <= {"welcome", "data", "updated", "left", "mute"}
    assert line.code == 0


def test_an_outbox_keeps_the_last_messages_only() -> None:
    outbox = Outbox(messages=3, limit=1_000)
    texts = [outbox.add(b'{"n":%d}' % number) for number in range(5)]
    assert texts[4] == b'{"n":4,"seq":5}'
    assert outbox.since(2) == texts[2:]
    assert outbox.since(5) == []
    for lost in (1, 0, -1, 6):
        assert outbox.since(lost) is None
    outbox.acknowledge(4)
    assert outbox.since(4) == texts[4:]
    assert outbox.since(3) is None
    for nonsense in (-5, 3, 10**30):
        outbox.acknowledge(nonsense)
    assert (outbox.kept, outbox.since(5)) == ((0, 0), [])


def test_an_outbox_is_bounded_by_bytes_too() -> None:
    outbox = Outbox(messages=1_000, limit=1_000)
    for _ in range(50):
        outbox.add(b'{"x":"%b"}' % (b"y" * 90))
    messages, size = outbox.kept
    assert messages == 9
    assert size <= 1_000
    outbox.add(b'{"x":"%b"}' % (b"y" * 2_000))
    assert outbox.kept == (0, 0)
    assert outbox.since(50) is None


def test_a_bucket_gives_its_rate_on_average() -> None:
    bucket = TokenBucket(rate=50, burst=200, now=0.0)
    assert sum(bucket.take(0.0) for _ in range(500)) == 200
    assert sum(bucket.take(tenth / 10) for tenth in range(1, 101) for _ in range(100)) in (499, 500)
    assert sum(bucket.take(100.0) for _ in range(500)) == 200


def test_a_flood_is_one_when_it_does_not_stop() -> None:
    flood = Flood()
    assert [flood.over(now, 3) for now in (0.0, 0.5, 1.0)] == [(True, False), (False, False), (True, False)]
    assert flood.over(2.9, 3) == (True, False)  # a pause of more than a second: a new one
    assert flood.over(3.5, 3)[1] is False
    assert [flood.over(2.9 + second, 3)[1] for second in (1.5, 2.4, 3.1)] == [False, False, True]
