"""The LiveKit adapter against a FAKE of LiveKit's server API, written here from its documentation.

No LiveKit server runs in these tests: they show that we say what the documentation asks for, not that LiveKit agrees.
"""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
import pytest_asyncio
from aiohttp import web

from webrtc.outbound.livekit import LiveKit, with_scheme

KEY, SECRET = "APIkey", "a-secret-of-livekit-that-is-long-enough"


@dataclass
class FakeLiveKit:
    """Answers /twirp/livekit.RoomService like the real one: 401 without the grant that a method needs."""

    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    status: int = 200
    url: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        method = request.match_info["method"]
        body = await request.json()
        scheme, _, token = request.headers["Authorization"].partition(" ")
        claims = jwt.decode(token, SECRET, algorithms=["HS256"], issuer=KEY, options={"require": ["exp", "nbf"]})
        video = claims["video"]
        allowed = {
            "CreateRoom": video.get("roomCreate"),
            "DeleteRoom": video.get("roomCreate"),
            "RemoveParticipant": video.get("roomAdmin") and video.get("room") == body.get("room"),
        }[method]
        if scheme != "Bearer" or not allowed:
            return web.json_response({"code": "unauthenticated", "msg": "permissions denied"}, status=401)
        self.calls.append((method, body))
        return web.json_response({}, status=self.status)


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[FakeLiveKit]:
    fake = FakeLiveKit()
    app = web.Application()
    app.router.add_post("/twirp/livekit.RoomService/{method}", fake.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"ws://127.0.0.1:{runner.addresses[0][1]}"
    yield fake
    await runner.cleanup()


class Told(list[tuple[str, str, dict[str, Any]]]):
    def __call__(self, room_id: str, member_id: str, data: bytes) -> None:
        self.append((room_id, member_id, json.loads(data)))


async def test_a_room_is_made_once_and_its_participants_get_tokens(fake: FakeLiveKit) -> None:
    told = Told()
    livekit = LiveKit(told, fake.url, KEY, SECRET)
    await livekit.enter("r1", "p_anna", publishes=True)
    await livekit.enter("r1", "p_ben", publishes=False)
    assert fake.calls == [("CreateRoom", {"name": "r1", "empty_timeout": 300})]
    assert [(room, member) for room, member, _ in told] == [("r1", "p_anna"), ("r1", "p_ben")]
    assert {data["livekit"]["url"] for *_, data in told} == {fake.url}
    anna, ben = (jwt.decode(data["livekit"]["token"], SECRET, algorithms=["HS256"]) for *_, data in told)
    assert anna["sub"] == "p_anna"
    assert anna["iss"] == KEY
    assert 3_000 < anna["exp"] - time.time() <= 3_600
    assert anna["video"] == {
        "room": "r1",
        "roomJoin": True,
        "canPublish": True,
        "canSubscribe": True,
        "canPublishData": False,
    }
    assert ben["video"]["canPublish"] is False
    await livekit.aclose()


async def test_who_leaves_is_removed_and_an_empty_room_deleted(fake: FakeLiveKit) -> None:
    livekit = LiveKit(Told(), fake.url, KEY, SECRET)
    await livekit.enter("r1", "p_anna", publishes=True)
    fake.calls.clear()
    await livekit.leave("r1", "p_anna")
    await livekit.leave("r1", "p_anna")
    await livekit.close("r1")
    await livekit.close("r1")
    assert fake.calls == [
        ("RemoveParticipant", {"room": "r1", "identity": "p_anna"}),
        ("DeleteRoom", {"room": "r1"}),
    ]
    await livekit.aclose()


async def test_a_restart_gets_a_new_token_and_nothing_else_an_answer(fake: FakeLiveKit) -> None:
    told = Told()
    livekit = LiveKit(told, fake.url, KEY, SECRET)
    await livekit.enter("r1", "p_anna", publishes=True)
    for data in (b"", b"[]", b"\xff", b'{"pc":"pub"}', b"[" * 100_000):
        await livekit.signal("r1", "p_anna", data)
    await livekit.signal("r1", "stranger", b'{"restart":true}')
    assert len(told) == 1
    await livekit.signal("r1", "p_anna", b'{"restart":true}')
    assert len(told) == 2
    await livekit.aclose()


@pytest.mark.parametrize("url", [None, "ws://127.0.0.1:1"])
async def test_a_failing_livekit_keeps_nobody_out_and_tells_no_secret(
    fake: FakeLiveKit, url: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    fake.status = 503
    told = Told()
    livekit = LiveKit(told, url or fake.url, KEY, SECRET)
    await livekit.enter("r1", "p_anna", publishes=True)
    await livekit.leave("r1", "p_anna")
    assert told[0][2]["livekit"]["token"]
    assert len(caplog.records) == 2
    assert SECRET not in caplog.text
    await livekit.aclose()


def test_urls() -> None:
    assert with_scheme("wss://a.b/", web=True) == "https://a.b"
    assert with_scheme("http://a.b:7880/path/", web=False) == "ws://a.b:7880/path"
