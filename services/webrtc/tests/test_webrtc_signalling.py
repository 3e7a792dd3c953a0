"""Signalling over real WebSockets: joining, what peers say to each other, coming back, and leaving."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.webrtc.tests.signalling_world import ROOM, SMALL, Limits, World, eventually, frames, world


@pytest.fixture
async def hub() -> AsyncIterator[World]:
    async with world() as made:
        yield made


# -- joining


async def test_who_joins_is_told_everything_and_the_others_that_somebody_came(hub: World) -> None:
    ada = await hub.join("ada")
    bob = await hub.join("bob")
    assert ada.welcome["room"] == {"id": ROOM, "name": "Daily", "max_participants": 10}
    assert (ada.welcome["seq"], ada.welcome["resumed"], ada.welcome["call_id"]) == (1, False, None)
    assert ada.welcome["ice_servers"] == [{"urls": ["turn:turn.test"], "username": "1:ada", "credential": "c"}]
    assert (ada.welcome["ice_expires_in"], ada.welcome["heartbeat"]) == (600, 10)
    assert (ada.welcome["media"], ada.welcome["degraded"], ada.welcome["single_instance"]) == (
        {"mode": "p2p"},
        [],
        False,
    )
    assert {one["id"]: (one["user_id"], one["name"]) for one in bob.welcome["participants"]} == {
        ada.id: ("ada", "Ada"),
        bob.id: ("bob", "Bob"),
    }
    joined = await ada.until("joined")
    assert (joined["participant"]["id"], joined["seq"]) == (bob.id, 2)
    assert bob.welcome["call_id"].startswith("call_")
    assert (await hub.join("cyd")).welcome["call_id"] == bob.welcome["call_id"]


async def test_one_user_may_be_there_twice(hub: World) -> None:
    one, other = await hub.join("ada"), await hub.join("ada")
    assert one.id != other.id
    assert (await one.until("joined"))["participant"]["user_id"] == "ada"


async def test_degraded_rows_are_told_at_joining_and_when_they_change(hub: World) -> None:
    ada = await hub.join("ada")
    hub.degraded = [{"row": "W2", "fallback": "stun-only", "text": "no relay"}]
    hub.hub.degraded_changed()
    hub.hub.degraded_changed()
    assert (await ada.until("degraded"))["rows"] == hub.degraded
    assert (await hub.join("bob")).welcome["degraded"] == hub.degraded
    assert [message["type"] for message in await ada.settled()] == ["joined"]
    hub.degraded = []
    hub.hub.degraded_changed()
    assert (await ada.until("degraded"))["rows"] == []


# -- what peers say to each other


async def test_signals_arrive_in_order_numbered_and_as_they_were(hub: World) -> None:
    ada, bob = await hub.join("ada"), await hub.join("bob")
    raw = '{"type":"signal","to":"%s","data":{ "sdp" : "ü\\u0041", "n": 1.10e2 ,"id":%d}}'
    for number in range(100):
        await ada.ws.send_str(raw % (bob.id, number))
    got = [await bob.until("signal") for _ in range(100)]
    assert [message["data"]["id"] for message in got] == list(range(100))
    assert [message["seq"] for message in got] == list(range(2, 102))
    assert {message["from"] for message in got} == {ada.id}
    await ada.ws.send_str(raw % (bob.id, 7))
    text = (await bob.ws.receive(timeout=5)).data
    assert '"data":{ "sdp" : "ü\\u0041", "n": 1.10e2 ,"id":7}' in text


async def test_data_goes_to_one_or_to_everybody_else(hub: World) -> None:
    ada, bob, cyd = await hub.join("ada"), await hub.join("bob"), await hub.join("cyd", data=False)
    await ada.say("data", data="hello")
    await ada.say("data", to=bob.id, data=["psst"])
    assert [(await bob.until("data"))["data"] for _ in range(2)] == ["hello", ["psst"]]
    assert [one["data"] for one in await cyd.settled() if one["type"] == "data"] == ["hello"]
    assert not [one for one in await ada.settled() if one["type"] == "data"]
    await cyd.say("data", data="not allowed")
    assert (await cyd.until("error"))["error"] == "FORBIDDEN"
    await ada.say("data", data="x" * 16_400)
    assert (await ada.until("error"))["error"] == "TOO_BIG"


async def test_who_is_not_there_cannot_be_talked_to(hub: World) -> None:
    ada = await hub.join("ada")
    other = await hub.join("bob", SMALL)
    for kind in ("signal", "data"):
        await ada.say(kind, to=other.id, data={})
        assert await ada.until("error") | {"seq": 0} == {
            "type": "error",
            "error": "NO_PARTICIPANT",
            "message": "There is no such participant.",
            "to": other.id,
            "seq": 0,
        }
    await ada.say("signal", to="sfu", data={})
    assert (await ada.until("error"))["error"] == "NO_SFU"
    assert not await other.settled()


async def test_mute_state_is_everybodys_and_moderators_ask_and_remove(hub: World) -> None:
    ada, bob = await hub.join("ada"), await hub.join("bob", moderate=True)
    await ada.say("media", audio=True, video=False)
    changed = (await bob.until("updated"))["participant"]
    assert (changed["id"], changed["audio"], changed["video"]) == (ada.id, True, False)
    await bob.say("mute", participant=ada.id, kind="audio")
    asked = await ada.until("mute")
    assert (asked["by"], asked["kind"]) == (bob.id, "audio")
    for kind in ("mute", "kick"):
        await ada.say(kind, participant=bob.id, **({"kind": "audio"} if kind == "mute" else {}))
        assert (await ada.until("error"))["error"] == "FORBIDDEN"
    await bob.say("kick", participant=ada.id)
    assert await ada.closed() == 4403
    left = await bob.until("left")
    assert (left["participant"], left["reason"]) == (ada.id, "kicked")
    back = await hub.socket(hub.token("ada"), ada.welcome["resume"], ada.seq)
    assert (await back.joined())["resumed"] is False


async def test_who_may_not_publish_cannot_say_that_it_does(hub: World) -> None:
    ada = await hub.join("ada", publish=False)
    await ada.say("media", audio=False, video=True)
    assert (await ada.until("error"))["error"] == "FORBIDDEN"


async def test_ice_servers_on_request_before_they_end_and_when_they_change(hub: World) -> None:
    ada, bob = await hub.join("ada"), await hub.join("bob")
    await ada.say("ice")
    fresh = await ada.until("ice")
    assert (fresh["restart"], fresh["stun_only"], fresh["expires_in"]) == (False, False, 600)
    hub.ice.stun_only = True
    hub.hub.ice_changed(restart=True)
    told = await bob.until("ice")
    assert (told["restart"], told["stun_only"], told["ice_servers"]) == (True, True, [{"urls": ["stun:stun.test"]}])
    assert told["owner"] == min(ada.id, bob.id)
    hub.ice.stun_only = False
    hub.hub.ice_changed(restart=True)
    await ada.settled()
    for _ in range(480):
        await hub.clock.advance(1)
        for one in hub.hub.everybody():
            one.heard_at = hub.clock.monotonic()
    hub.hub.tick()
    assert (await ada.until("ice"))["restart"] is False


async def test_stats_become_a_quality_that_everybody_sees() -> None:
    class Meter:
        def add(self, report: object, now: float) -> str:
            return "poor"

        def path(self, peer: str, state: str, relayed: bool) -> None:
            pass

        def summary(self) -> dict[str, object]:
            return {}

    async with world(meter=Meter) as hub:
        ada, bob = await hub.join("ada"), await hub.join("bob")
        for _ in range(2):
            await ada.say("stats", report={"rtt_ms": 300, "loss": 0.1, "jitter_ms": 9, "bitrate_kbps": 100})
        assert (await bob.until("updated"))["participant"]["quality"] == "poor"
        await ada.settled()
        assert not await bob.settled()


# -- coming back


async def test_a_lost_connection_is_resumed_and_nobody_hears_of_a_leave(hub: World) -> None:
    ada, bob = await hub.join("ada"), await hub.join("bob")
    await bob.settled()
    bob.vanish()
    await eventually(lambda: hub.hub.connections == 1)
    for number in range(5):
        await ada.say("signal", to=bob.id, data=number)
    await ada.settled()
    await hub.pass_time(2.5)
    back = await hub.socket(hub.token("bob"), bob.welcome["resume"], bob.seq)
    welcome = await back.joined()
    assert [message["data"] for message in back.seen[:-1]] == list(range(5))
    assert [message["seq"] for message in back.seen] == list(range(bob.seq + 1, bob.seq + 7))
    assert (welcome["resumed"], welcome["participant"]) == (True, bob.id)
    assert not await ada.settled()


async def test_a_longer_absence_is_shown_and_ends_with_a_leave_after_30_s(hub: World) -> None:
    ada, bob, cyd = await hub.join("ada"), await hub.join("bob"), await hub.join("cyd")
    for gone in (bob, cyd):
        gone.vanish()
    await eventually(lambda: hub.hub.connections == 1)
    await hub.pass_time(4)
    away = [await ada.until("updated") for _ in range(2)]
    assert all(message["participant"]["away"] for message in away)
    back = await hub.socket(hub.token("bob"), bob.welcome["resume"], bob.seq)
    assert (await back.joined())["resumed"] is True
    assert (await ada.until("updated"))["participant"]["away"] is False
    await ada.settled()
    await hub.pass_time(12)
    await ada.settled()
    await back.settled()
    await hub.pass_time(15)
    left = await ada.until("left")
    assert (left["participant"], left["reason"]) == (cyd.id, "lost")
    late = await hub.socket(hub.token("cyd"), cyd.welcome["resume"], cyd.seq)
    assert (await late.joined())["resumed"] is False
    assert late.id == cyd.id


async def test_what_was_acknowledged_is_not_kept_and_too_much_is_missed_for_good() -> None:
    async with world(limits=Limits(outbox_messages=8, message_rate=1e9, message_burst=1e9)) as hub:
        ada, bob = await hub.join("ada"), await hub.join("bob")
        await bob.settled()
        await bob.say("ack", seq=bob.seq)
        await bob.settled()
        participant = hub.hub.find(ROOM, bob.id)
        assert participant is not None
        assert participant.outbox.kept == (0, 0)
        bob.vanish()
        await eventually(lambda: hub.hub.connections == 1)
        for number in range(9):
            await ada.say("signal", to=bob.id, data=number)
        await ada.settled()
        assert participant.outbox.kept[0] == 8
        back = await hub.socket(hub.token("bob"), bob.welcome["resume"], bob.seq)
        welcome = await back.joined()
        assert (welcome["resumed"], welcome["participant"], len(back.seen)) == (False, bob.id, 1)
        await ada.say("signal", to=bob.id, data="new")
        assert (await back.until("signal"))["seq"] == welcome["seq"] + 1
        assert not [one for one in await ada.settled() if one["type"] in ("left", "joined")]


async def test_the_newest_socket_wins_at_once(hub: World) -> None:
    ada, bob = await hub.join("ada"), await hub.join("bob")
    newer = await hub.socket(hub.token("bob"), bob.welcome["resume"], bob.seq)
    assert (await newer.joined())["resumed"] is True
    assert await bob.closed() == 4421
    await ada.say("signal", to=bob.id, data=1)
    assert (await newer.until("signal"))["data"] == 1
    assert [one["type"] for one in await ada.settled()] == ["joined"]


async def test_a_secret_is_good_for_its_own_user_and_room_only(hub: World) -> None:
    bob = await hub.join("bob")
    for user, secret in (
        ("eve", bob.welcome["resume"]),
        ("bob", f"{bob.id}.{'0' * 32}"),
        ("bob", bob.id),
        ("bob", bob.welcome["resume"] + "0"),
    ):
        other = await hub.socket(hub.token(user), secret, 0)
        assert (await other.joined())["resumed"] is False
        assert other.id != bob.id
    elsewhere = await hub.socket(hub.token("bob", SMALL), bob.welcome["resume"], 0)
    assert (await elsewhere.joined())["participant"] != bob.id
    assert bob.ws.close_code is None


async def test_a_hundred_reconnects_are_nobody_elses_business(hub: World) -> None:
    ada, bob, cyd = await hub.join("ada"), await hub.join("bob"), await hub.join("cyd")
    client, seq = bob, bob.seq
    for number in range(100):
        if number % 2:
            client.vanish()
        client = await hub.socket(hub.token("bob"), bob.welcome["resume"], seq)
        assert (await client.joined())["resumed"] is True
        seq = client.seq
        await ada.say("signal", to=cyd.id, data=number)
        await client.say("ack", seq=seq)
    assert [(await cyd.until("signal"))["data"] for _ in range(100)] == list(range(100))
    assert {one["type"] for one in (*await ada.settled(), *cyd.seen)} <= {"joined", "signal", "welcome"}
    await eventually(lambda: hub.hub.connections == 3)


# -- leaving


@pytest.mark.parametrize("politely", [True, False])
async def test_good_bye_is_a_leave_at_once(hub: World, politely: bool) -> None:
    ada, bob = await hub.join("ada"), await hub.join("bob")
    if politely:
        await bob.say("leave")
        assert await bob.closed() == 1000
    else:
        await bob.ws.close(code=1000)
    left = await ada.until("left")
    assert (left["participant"], left["reason"]) == (bob.id, "left")


async def test_a_closed_tab_may_be_a_reload(hub: World) -> None:
    ada, bob = await hub.join("ada"), await hub.join("bob")
    await bob.ws.close(code=1001)
    await eventually(lambda: hub.hub.connections == 1)
    back = await hub.socket(hub.token("bob"), bob.welcome["resume"], bob.seq)
    assert (await back.joined())["resumed"] is True
    assert [one["type"] for one in await ada.settled()] == ["joined"]


async def test_a_good_bye_without_a_code_is_answered_and_may_come_back(hub: World) -> None:
    ada, bob = await hub.join("ada"), await hub.join("bob")
    await frames(bob, [b""], kind=8)
    assert await bob.closed() == 1000
    await eventually(lambda: hub.hub.connections == 1)
    back = await hub.socket(hub.token("bob"), bob.welcome["resume"], bob.seq)
    assert (await back.joined())["resumed"] is True
    assert [one["type"] for one in await ada.settled()] == ["joined"]


async def test_a_full_room_takes_nobody_else_until_somebody_left(hub: World) -> None:
    ada, _ = await hub.join("ada", SMALL), await hub.join("bob", SMALL)
    third = await hub.socket(hub.token("cyd", SMALL))
    assert (await third.until("refused"))["error"] == "ROOM_FULL"
    assert await third.closed() == 4409
    await ada.say("leave")
    assert await ada.closed() == 1000
    await hub.join("cyd", SMALL)


async def test_a_full_room_takes_who_was_there_and_lost_the_connection(hub: World) -> None:
    ada, bob = await hub.join("ada", SMALL), await hub.join("bob", SMALL)
    bob.vanish()
    await eventually(lambda: hub.hub.connections == 1)
    third = await hub.socket(hub.token("cyd", SMALL))
    assert await third.closed() == 4409
    again = await hub.join("bob", SMALL)
    assert again.id != bob.id
    assert [(one["type"], one.get("reason")) for one in (await ada.settled())[1:]] == [
        ("left", "lost"),
        ("joined", None),
    ]


async def test_a_deleted_room_ends_for_everybody(hub: World) -> None:
    clients = [await hub.join("ada"), await hub.join("bob")]
    other = await hub.join("cyd", SMALL)
    del hub.rooms[ROOM]
    hub.hub.delete(ROOM)
    assert [await one.closed() for one in clients] == [4410, 4410]
    assert list(hub.hub.rooms) == [SMALL]
    assert await other.settled() == []
    late = await hub.socket(hub.token("ada"))
    assert await late.closed() == 4404


async def test_an_owner_removes_somebody(hub: World) -> None:
    ada, bob = await hub.join("ada"), await hub.join("bob")
    assert {one.id for one in await hub.hub.members(ROOM)} == {ada.id, bob.id}
    await hub.hub.remove(ROOM, bob.id)
    assert await bob.closed() == 4403
    assert (await ada.until("left"))["reason"] == "kicked"


async def test_when_the_service_stops_all_are_told_when_to_come_back(hub: World) -> None:
    clients = [await hub.join("ada"), await hub.join("bob")]
    hub.hub.drain()
    for one in clients:
        assert await one.closed() == 1012
        last = one.seen[-1]
        assert (last["type"], last["error"]) == ("error", "RESTARTING")
        assert 0.5 <= last["retry_after"] <= 3
    late = await hub.socket(hub.token("cyd"))
    assert await late.closed() == 1012
    assert late.seen[-1]["type"] == "refused"


async def test_a_silent_connection_is_asked_and_then_given_up(hub: World) -> None:
    mute = await hub.socket(hub.token("ada"), autoping=False)
    await mute.joined()
    bob = await hub.join("bob")
    answering = asyncio.create_task(bob.until("updated"))  # aiohttp answers pings while it reads
    for _ in range(29):
        await hub.pass_time(1)
        await eventually(lambda: not hub.pinged or hub.heard(bob.id))
    away = (await asyncio.wait_for(answering, 5))["participant"]
    assert (away["id"], away["away"]) == (mute.id, True)
    kinds = [await mute.ws.receive(timeout=5) for _ in range(4)]
    assert [one.type.name for one in kinds] == ["TEXT", "PING", "PING", "CLOSE"]
    assert mute.ws.close_code == 4408
