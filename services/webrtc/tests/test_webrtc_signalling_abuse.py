"""What one client can do to the others: nothing. Bad messages, floods, deaf ears, forged tokens, odd frames."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
import jwt
import pytest

from service_kit.tokens import TokenIssuer
from services.webrtc.tests.signalling_world import ROOM, SECRET, Client, Limits, World, eventually, frames, world
from webrtc.model import RoomElsewhere
from webrtc.usecases.cluster.alone import Alone
from webrtc.usecases.signalling.messages import MESSAGE_LIMIT


@pytest.fixture
async def hub() -> AsyncIterator[World]:
    async with world() as made:
        yield made


async def _talk(hub: World, ada: Client, bob: Client) -> None:
    """Two that are there already do not notice anything."""
    await ada.say("signal", to=bob.id, data="still here")
    while (await bob.until("signal"))["data"] != "still here":
        pass
    assert not [one for one in (*ada.seen, *bob.seen) if one["type"] == "error"]


# -- messages


async def test_what_is_no_message_is_said_and_ends_after_ten_of_them(hub: World) -> None:
    ada, bob, eve = await hub.join("ada"), await hub.join("bob"), await hub.join("eve")
    bad = [
        "",
        "{",
        "[]",
        '"x"',
        "{}",
        '{"type":"signal"}',
        '{"type":"media","audio":1,"video":true}',
        '{"type":"signal","to":"p","data":NaN}',
        '{"type":"stats","report":{"rtt_ms":-1,"loss":0,"jitter_ms":0,"bitrate_kbps":0}}',
        "[" * 60_000,
    ]
    for number, text in enumerate(bad):
        await eve.ws.send_str(text)
        if number < 9:
            assert (await eve.until("error"))["error"] == "MALFORMED", text
    assert await eve.closed() == 4400
    assert (await ada.until("left"))["reason"] == "removed"
    await _talk(hub, ada, bob)
    assert hub.hub.closes[4400] == 1


async def test_an_unknown_type_is_said_and_nothing_else(hub: World) -> None:
    ada = await hub.join("ada")
    for _ in range(20):
        await ada.ws.send_str('{"type":"hologram","x":1}')
        assert (await ada.until("error"))["error"] == "UNKNOWN_TYPE"
    assert await ada.settled() == []


async def test_bytes_that_are_no_text_reach_nobody(hub: World) -> None:
    ada, bob, eve = await hub.join("ada"), await hub.join("bob"), await hub.join("eve")
    text = b'{"type":"signal","to":"%b","data":"\xff\xfe"}' % bob.id.encode()
    await eve.ws._writer.send_frame(text, aiohttp.WSMsgType.TEXT)
    await eve.ws.send_bytes(b'{"type":"ping"}')
    assert [(await eve.until("error"))["error"] for _ in range(2)] == ["MALFORMED"] * 2
    await _talk(hub, ada, bob)


async def test_a_message_beyond_64_kib_ends_the_connection(hub: World) -> None:
    ada, bob, eve = await hub.join("ada"), await hub.join("bob"), await hub.join("eve")
    await eve.ws.send_str('{"type":"data","data":"%s"}' % ("x" * MESSAGE_LIMIT))
    assert await eve.closed() == 1009
    await eventually(lambda: hub.hub.closes[1009] == 1)
    await _talk(hub, ada, bob)


async def test_messages_in_pieces_are_put_together_up_to_the_limit(hub: World) -> None:
    ada, bob = await hub.join("ada"), await hub.join("bob")
    text = json.dumps({"type": "signal", "to": bob.id, "data": "in three"}).encode()
    await frames(ada, [text[:10], text[10:30], text[30:]])
    assert (await bob.until("signal"))["data"] == "in three"
    await frames(ada, [b"x" * 60_000, b"x" * 6_000], finish=False)
    assert await ada.closed() == 1009


async def test_a_flood_is_refused_and_ends_after_three_seconds(hub: World) -> None:
    ada, bob, eve = await hub.join("ada"), await hub.join("bob"), await hub.join("eve")
    for _ in range(220):
        await eve.say("signal", to=bob.id, data="flood")
    error = await eve.until("error")
    assert (error["error"], error["retry_after"]) == ("RATE_LIMITED", 1)
    for _ in range(6):
        await hub.clock.advance(0.5)
        for _ in range(60):
            await eve.say("signal", to=bob.id, data="flood")
        await asyncio.sleep(0.01)
    assert await eve.closed() == 4429
    assert sum(one["type"] == "error" for one in eve.seen) <= 5
    await _talk(hub, ada, bob)
    assert sum(one.get("data") == "flood" for one in bob.seen) <= 200 + 3 * 50 + 25


async def test_a_burst_is_no_flood(hub: World) -> None:
    eve = await hub.join("eve")
    for _ in range(3):
        for _ in range(205):
            await eve.say("ack", seq=1)
        assert (await eve.until("error"))["error"] == "RATE_LIMITED"
        await hub.clock.advance(4)
    assert await eve.settled() == []


async def test_who_does_not_read_is_dropped_and_the_others_go_on() -> None:
    limits = Limits(message_rate=1e9, message_burst=1e9, buffer_bytes=200_000)
    async with world(limits=limits) as hub:
        ada, bob, deaf = await hub.join("ada"), await hub.join("bob"), await hub.join("deaf")
        _stop_reading(deaf)
        participant = hub.hub.find(ROOM, deaf.id)
        assert participant is not None
        most = 0
        for number in range(2_000):
            await ada.say("signal", to=deaf.id, data="x" * 15_000)
            if number % 50 == 0:
                await ada.settled()
                most = max(most, participant.socket.buffered if participant.socket else 0)
            if hub.hub.closes[4420]:
                break
        assert hub.hub.closes[4420] == 1
        assert most < 200_000 + 16_000
        assert participant.outbox.kept[1] <= 262_144
        await _talk(hub, ada, bob)
        await eventually(lambda: hub.hub.connections == 2)


async def test_who_does_not_read_for_five_seconds_is_dropped_too() -> None:
    async with world(limits=Limits(message_rate=1e9, message_burst=1e9, buffer_bytes=1 << 40)) as hub:
        ada, deaf = await hub.join("ada"), await hub.join("deaf")
        _stop_reading(deaf)
        participant = hub.hub.find(ROOM, deaf.id)
        assert participant is not None
        socket = participant.socket
        assert socket is not None
        while socket.paused_at is None:
            await ada.say("signal", to=deaf.id, data="x" * 15_000)
            await ada.settled()
        await hub.pass_time(4)
        assert participant.socket is socket
        await hub.pass_time(2)
        assert participant.socket is None
        assert hub.hub.closes[4420] == 1


def _stop_reading(client: Client) -> None:
    connection = client.ws._response.connection
    assert connection is not None
    assert connection.transport is not None
    connection.transport.pause_reading()


# -- the door


def _signed(**changes: object) -> str:
    now = int(time.time())
    claims = {"iss": "auralink", "aud": "webrtc", "sub": "eve", "room": ROOM, "iat": now, "exp": now + 60, **changes}
    return jwt.encode({key: value for key, value in claims.items() if value is not None}, SECRET, algorithm="HS256")


TOKENS: dict[str, Callable[[], str]] = {
    "none": lambda: "",
    "nonsense": lambda: "e.e.e",
    "too long": lambda: "x" * 5_000,
    "forged": lambda: jwt.encode(
        {"aud": "webrtc", "sub": "eve", "room": ROOM, "iss": "auralink", "iat": 0, "exp": 2**33}, "x" * 32, "HS256"
    ),
    "unsigned": lambda: jwt.encode({"aud": "webrtc", "sub": "eve", "room": ROOM, "exp": 2**33}, "", algorithm="none"),
    "expired": lambda: _signed(exp=int(time.time()) - 10),
    "without an end": lambda: _signed(exp=None),
    "for other ears": lambda: _signed(aud="auralink"),
    "access token": lambda: TokenIssuer(SECRET).issue("eve", "session"),
    "without a room": lambda: _signed(room=None),
    "strange grants": lambda: _signed(grants={"fly": True}),
    "strange subject": lambda: _signed(sub=None),
}


@pytest.mark.parametrize("kind", TOKENS)
async def test_a_bad_token_is_refused_with_a_code_that_browsers_can_read(hub: World, kind: str) -> None:
    eve = await hub.socket(TOKENS[kind]())
    assert await eve.closed() == 4401
    assert [(one["type"], one["error"]) for one in eve.seen] == [("refused", "TOKEN")]
    assert hub.hub.sizes == (0, 0)


async def test_a_token_opens_its_own_room_only(hub: World) -> None:
    eve = await hub.socket(_signed(room="00000000-0000-4000-8000-00000000000f"))
    assert await eve.closed() == 4404
    assert hub.hub.sizes == (0, 0)


async def test_only_one_path_is_a_websocket(hub: World) -> None:
    for path in ("/", "/wsx", "/api/v1/rooms", "/ws/x"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await hub.session.ws_connect(f"http://127.0.0.1:{hub.port}{path}")
        assert refused.value.status == 404
    async with hub.session.get(f"http://127.0.0.1:{hub.port}/ws") as answer:
        assert answer.status == 404


@pytest.mark.parametrize("query", ["", "?", "?token", "?token=%ff", "?seq=9" + "9" * 99, "?a=1&" * 50])
async def test_odd_queries_are_refused_as_any_bad_token(hub: World, query: str) -> None:
    made = await hub.session.ws_connect(f"http://127.0.0.1:{hub.port}/ws{query}")
    assert await Client(made).closed() == 4401


async def test_what_cannot_be_joined_now_says_when_to_try_again() -> None:
    failures: list[Exception] = [RoomElsewhere(7), ConnectionError("a secret host")]

    async def find(_room: str) -> None:
        raise failures.pop(0)

    async with world(cluster=Alone(find)) as hub:  # type: ignore[arg-type]
        for error in ("ROOM_ELSEWHERE", "UNAVAILABLE"):
            client = await hub.socket(hub.token("ada"))
            assert await client.closed() == 4503
            assert client.seen[0]["error"] == error
            assert client.seen[0]["retry_after"] > 0
            assert "secret" not in json.dumps(client.seen)
        assert "secret" not in str(hub.notes)


async def test_joins_are_admitted_by_rate_and_number() -> None:
    async with world(limits=Limits(join_rate=1, join_burst=2, connections=3)) as hub:
        clients = [await hub.join("ada"), await hub.join("bob")]
        late = await hub.socket(hub.token("cyd"))
        assert await late.closed() == 4503
        assert 0.5 <= late.seen[0]["retry_after"] <= 3
        await hub.clock.advance(10)
        clients.append(await hub.join("cyd"))
        crowded = await hub.socket(hub.token("dan"))
        assert await crowded.closed() == 4503
        assert crowded.seen[0]["error"] == "BUSY"
        assert not await clients[2].settled()


async def test_nothing_secret_is_noted(hub: World) -> None:
    ada, bob = await hub.join("ada"), await hub.join("bob")
    await ada.say("signal", to=bob.id, data="private")
    await ada.say("leave")
    await ada.closed()
    noted = str(hub.notes)
    assert "joined" in noted
    assert "left" in noted
    for secret in (hub.token("ada")[:20], ada.welcome["resume"].partition(".")[2], "private"):
        assert secret not in noted
