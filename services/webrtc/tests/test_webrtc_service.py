"""The WebRTC service as a process on a real Redis-compatible server, while that is killed, frozen and cut off."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import grpc
import jwt
import pytest
import pytest_asyncio

from auralink.webrtc.v1 import webrtc_pb2, webrtc_pb2_grpc
from devstack import Stack, Topology
from service_kit.errors import CircuitOpen, ServiceError
from service_kit.redis_client import create_client
from service_kit.rpc_client import channel
from service_kit.rpc_errors import from_grpc
from service_kit.tokens import TokenIssuer
from services.webrtc.tests.signalling_world import Client as Peer
from webrtc.degradation import MEMORY_ROOMS, REDIS
from webrtc.model import ROOMS_PER_OWNER, Room, TooManyRooms
from webrtc.outbound.redis import RedisRooms

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMPONENTS = frozenset({"redis", "webrtc"})
ROOMS = "/api/v1/rooms"
DEADLINE = 2.0  # s, every request's
SOON = 0.3  # s for an answer once the circuit is open
RECOVERY = 5.0  # s from the dependency's return to its use


class Answer:
    def __init__(self, status: int, body: Any, headers: Mapping[str, str], seconds: float) -> None:
        self.status = status
        self.body = body
        self.headers = headers
        self.seconds = seconds


class Client:
    """Talks to the running service as one user, through both doors."""

    def __init__(self, stack: Stack, session: aiohttp.ClientSession, user: str) -> None:
        self.stack = stack
        self._session = session
        self.token = TokenIssuer(stack.state.secret("jwt")).issue(user, "session")
        self._channel = channel(stack.grpc("webrtc"))
        self._stub = webrtc_pb2_grpc.RoomServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def http(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        sent = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", **headers}
        data = None if body is None else json.dumps(body).encode()
        begun = time.monotonic()
        async with self._session.request(method, self.stack.url("webrtc") + path, data=data, headers=sent) as response:
            text = await response.text()
            seconds = time.monotonic() - begun
            return Answer(response.status, json.loads(text) if text else None, response.headers, seconds)

    async def rpc(self, method: str, request: Any) -> Any:
        metadata = (("authorization", f"Bearer {self.token}"),)
        return await getattr(self._stub, method)(request, timeout=DEADLINE, metadata=metadata)

    async def rpc_error(self, method: str, request: Any) -> tuple[grpc.StatusCode, ServiceError]:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.rpc(method, request)
        return raised.value.code(), from_grpc(raised.value)

    async def room(self, name: str = "Standup") -> str:
        made = await self.http("POST", ROOMS, {"name": name})
        assert made.status == 201, made.body
        return str(made.body["id"])


async def until(condition: Callable[[], Awaitable[bool]], limit: float = RECOVERY) -> None:
    begun = time.monotonic()
    while not await condition():
        assert time.monotonic() - begun < limit, "it did not happen in time"
        await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    topology = Topology(only=COMPONENTS)
    async with Stack(tmp_path_factory.mktemp("webrtc"), topology, port_base=None) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alice(stack: Stack, session: aiohttp.ClientSession) -> AsyncIterator[Client]:
    client = Client(stack, session, "alice")
    yield client
    await client.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bob(stack: Stack, session: aiohttp.ClientSession) -> AsyncIterator[Client]:
    client = Client(stack, session, "bob")
    yield client
    await client.close()


@pytest_asyncio.fixture(loop_scope="module")
async def store(stack: Stack) -> AsyncIterator[RedisRooms]:
    client = create_client(stack.url("redis"))
    yield RedisRooms(client)
    await client.aclose()


async def test_a_rooms_life_over_http(stack: Stack, alice: Client, bob: Client) -> None:
    made = await alice.http("POST", ROOMS, {"name": "Straße ☎", "max_participants": 4})
    assert made.status == 201
    path = f"{ROOMS}/{made.body['id']}"
    seen = await bob.http("GET", path)
    assert seen.body == made.body
    assert (seen.body["name"], seen.body["owner_id"], seen.body["max_participants"]) == ("Straße ☎", "alice", 4)
    assert "X-Degraded-Mode" not in seen.headers
    ticket = (await bob.http("POST", f"{path}/token")).body
    claims = jwt.decode(ticket["token"], stack.state.secret("jwt"), algorithms=["HS256"], audience="webrtc")
    assert (claims["sub"], claims["room"]) == ("bob", made.body["id"])
    assert ticket["ws_url"].endswith("/ws")
    assert [server["urls"][0].partition(":")[0] for server in ticket["ice_servers"]] == ["stun"]
    forbidden = await bob.http("DELETE", path)
    assert (forbidden.status, forbidden.body["error"]) == (403, "FORBIDDEN")
    assert (await alice.http("DELETE", path)).status == 204
    for method, gone in (("GET", path), ("DELETE", path), ("POST", f"{path}/token")):
        assert (await alice.http(method, gone)).status == 404


async def test_the_same_over_grpc(alice: Client, bob: Client) -> None:
    room = (await alice.rpc("CreateRoom", webrtc_pb2.CreateRoomRequest(name="Standup"))).room
    assert room.max_participants == 10
    assert (await bob.rpc("GetRoom", webrtc_pb2.GetRoomRequest(id=room.id))).room == room
    ticket = await bob.rpc("IssueToken", webrtc_pb2.IssueTokenRequest(room_id=room.id))
    assert ticket.token
    assert ticket.expires_in == 3600
    servers = (await bob.rpc("GetIceServers", webrtc_pb2.GetIceServersRequest())).ice_servers
    assert servers[-1].urls
    listed = (await alice.rpc("ListRooms", webrtc_pb2.ListRoomsRequest(page_size=1))).items
    assert [one.id for one in listed] == [room.id]
    code, _ = await bob.rpc_error("DeleteRoom", webrtc_pb2.DeleteRoomRequest(id=room.id))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    await alice.rpc("DeleteRoom", webrtc_pb2.DeleteRoomRequest(id=room.id))
    code, _ = await alice.rpc_error("GetRoom", webrtc_pb2.GetRoomRequest(id=room.id))
    assert code is grpc.StatusCode.NOT_FOUND
    code, error = await alice.rpc_error("CreateRoom", webrtc_pb2.CreateRoomRequest(name="", max_participants=1))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details is not None
    assert error.details.keys() == {"name", "max_participants"}


async def test_lists_are_paged_and_one_users_own(stack: Stack, session: aiohttp.ClientSession) -> None:
    carol = Client(stack, session, "carol")
    ids = [await carol.room(f"room {number}") for number in range(5)]
    seen, cursor = [], ""
    while True:
        page = (await carol.http("GET", f"{ROOMS}?limit=2&cursor={cursor}")).body
        seen += [room["id"] for room in page["items"]]
        if not (cursor := page["next_cursor"]):
            break
    assert seen == ids[::-1]
    await carol.close()


async def test_the_store_bounds_an_owners_rooms_and_repeats_harmlessly(store: RedisRooms) -> None:
    rooms = [Room(f"00000000-0000-4000-8000-{n:012d}", "r", 10, "dave", 1_700_000_000_000_000 + n) for n in range(1001)]
    for batch in range(0, ROOMS_PER_OWNER, 10):  # fewer than there are connections: a place in the pool has its limit
        await asyncio.gather(*(store.create(room) for room in rooms[batch : batch + 10]))
    with pytest.raises(TooManyRooms):
        await store.create(rooms[ROOMS_PER_OWNER])
    await store.create(rooms[0])
    page = await store.page("dave", 3, "")
    assert page == rooms[999:996:-1]
    assert await store.page("dave", 2, page[-1].place) == [rooms[996], rooms[995]]
    for batch in range(0, len(rooms), 10):
        await asyncio.gather(*(store.delete(room) for room in rooms[batch : batch + 10]))
    assert await store.page("dave", 3, "") == []


@pytest.mark.parametrize(
    "body",
    [{}, [], {"name": ""}, {"name": " "}, {"name": 1}, {"name": "x", "max_participants": 1}, {"name": "x", "x": 1}],
    ids=str,
)
async def test_bad_bodies_are_refused(alice: Client, body: Any) -> None:
    answer = await alice.http("POST", ROOMS, body)
    assert (answer.status, answer.body["error"]) == (422, "VALIDATION_ERROR")


async def test_bad_callers_ids_and_cursors_are_refused(alice: Client) -> None:
    assert (await alice.http("GET", ROOMS, Authorization="Bearer nonsense")).status == 401
    assert (await alice.http("GET", "/api/v1/ice-servers", Authorization="")).status == 401
    assert (await alice.http("GET", f"{ROOMS}/0")).status == 404
    for query in ("limit=101", "cursor=AAAA"):
        assert (await alice.http("GET", f"{ROOMS}?{query}")).status == 422


@pytest.mark.row("webrtc.redis")
@pytest.mark.parametrize("fault", ["kill", "freeze", "cut", "delay"])
async def test_without_redis_known_and_new_rooms_are_served_from_memory_and_the_answer_says_so(
    stack: Stack, alice: Client, fault: str
) -> None:
    room, doomed = await alice.room(), await alice.room()
    await getattr(stack, fault)("redis")
    try:
        answers = [await alice.http("GET", f"{ROOMS}/{room}") for _ in range(REDIS.max_failures)]
        made = await alice.http("POST", ROOMS, {"name": "made without redis"})
        answers += [await alice.http("POST", f"{ROOMS}/{made.body['id']}/token"), made]
        answers += [await alice.http("DELETE", f"{ROOMS}/{doomed}"), await alice.http("GET", ROOMS)]
        for answer in answers:
            assert answer.status in (200, 201, 204), answer.body
            assert (answer.headers["X-Degraded-Mode"], answer.headers["X-Fallback-Used"]) == ("true", MEMORY_ROOMS)
            assert answer.seconds < DEADLINE
        assert made.headers["X-Circuit-State"] == "open"
        assert made.seconds < SOON
        assert [one["id"] for one in answers[-1].body["items"]][:2] == [made.body["id"], room]
        assert (await alice.http("GET", f"{ROOMS}/{doomed}")).status == 404
        ticket = await alice.rpc("IssueToken", webrtc_pb2.IssueTokenRequest(room_id=room))
        assert ticket.token
        await refused(alice, f"{ROOMS}/00000000-0000-4000-8000-000000000000")
        assert (await alice.http("POST", ROOMS, {"name": ""})).status == 422
        assert (await alice.http("GET", f"{ROOMS}/0")).status == 404
        assert (await alice.http("GET", "/api/v1/ice-servers")).status == 200
        assert (await alice.http("GET", "/health/ready")).status == 200
    finally:
        await stack.heal("redis")

    async def merged() -> bool:
        found = await alice.http("GET", f"{ROOMS}/{made.body['id']}")
        return found.status == 200 and "X-Degraded-Mode" not in found.headers

    await until(merged)
    assert (await alice.http("GET", f"{ROOMS}/{doomed}")).status == 404


async def refused(alice: Client, path: str) -> None:
    """A room that is not known here: an error and the time to retry."""
    rejected = await alice.http("GET", path)
    assert (rejected.status, rejected.body["error"]) == (429, "CIRCUIT_OPEN")
    assert int(rejected.headers["Retry-After"]) >= 1
    assert rejected.body["message"] == REDIS.user_text
    code, error = await alice.rpc_error("IssueToken", webrtc_pb2.IssueTokenRequest(room_id=path.rsplit("/", 1)[1]))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert isinstance(error, CircuitOpen)


@pytest.mark.row("webrtc.redis")
@pytest.mark.parametrize("fault", ["kill", "cut"])
async def test_a_loss_between_requests_is_not_noticed(stack: Stack, alice: Client, fault: str) -> None:
    room = await alice.room()
    await asyncio.gather(*(alice.http("GET", f"{ROOMS}/{room}") for _ in range(8)))
    await getattr(stack, fault)("redis")
    await stack.heal("redis")
    answers = [await alice.http("GET", f"{ROOMS}/{room}") for _ in range(8)]
    assert [answer.status for answer in answers] == [200] * 8


# -- signalling, on the same port


async def _enter(stack: Stack, session: aiohttp.ClientSession, user: Client, room: str, name: str) -> Peer:
    ticket = (await user.http("POST", f"{ROOMS}/{room}/token", {"name": name})).body
    peer = Peer(await session.ws_connect(f"{stack.url('webrtc')}/ws", params={"token": ticket["token"]}))
    await peer.joined()
    return peer


async def test_peers_meet_on_the_services_own_port(
    stack: Stack, session: aiohttp.ClientSession, alice: Client, bob: Client
) -> None:
    room = await alice.room()
    ada, bert = [await _enter(stack, session, user, room, name) for user, name in ((alice, "Ada"), (bob, "Bert"))]
    await ada.say("signal", to=bert.id, data={"description": {"type": "offer", "sdp": "x" * 4_000}})
    assert (await bert.until("signal"))["data"]["description"]["sdp"] == "x" * 4_000
    listed = (await bob.http("GET", f"{ROOMS}/{room}/participants")).body["items"]
    assert [(one["id"], one["name"], one["user_id"]) for one in listed] == [
        (ada.id, "Ada", "alice"),
        (bert.id, "Bert", "bob"),
    ]
    over_grpc = (await bob.rpc("ListParticipants", webrtc_pb2.ListParticipantsRequest(room_id=room))).items
    assert [one.id for one in over_grpc] == [ada.id, bert.id]
    metrics = await (await session.get(f"{stack.url('webrtc')}/metrics")).text()
    assert 'webrtc_messages_total{service="webrtc",type="signal"} ' in metrics
    assert 'webrtc_participants{service="webrtc"} 2.0' in metrics
    await bert.say("kick", participant=ada.id)
    assert (await bert.until("error"))["error"] == "FORBIDDEN"
    await ada.say("kick", participant=bert.id)  # the owner may
    assert await bert.closed() == 4403
    assert "eyJ" not in stack.log_tail("webrtc", 1_000)
    await ada.ws.close()


async def test_an_owner_removes_participants_and_rooms(
    stack: Stack, session: aiohttp.ClientSession, alice: Client, bob: Client
) -> None:
    room = await alice.room()
    ada, bert, carl = [
        await _enter(stack, session, user, room, name) for user, name in ((alice, "a"), (bob, "b"), (bob, "c"))
    ]
    path = f"{ROOMS}/{room}/participants"
    assert (await bob.http("DELETE", f"{path}/{bert.id}")).status == 403
    assert (await alice.http("DELETE", f"{path}/p_0")).status == 404
    assert (await alice.http("DELETE", f"{path}/{bert.id}")).status == 204
    assert await bert.closed() == 4403
    request = webrtc_pb2.RemoveParticipantRequest(room_id=room, participant_id=carl.id)
    code, _ = await bob.rpc_error("RemoveParticipant", request)
    assert code is grpc.StatusCode.PERMISSION_DENIED
    await alice.rpc("RemoveParticipant", request)
    assert await carl.closed() == 4403
    assert (await alice.http("DELETE", f"{ROOMS}/{room}")).status == 204
    assert await ada.closed() == 4410
    assert (await alice.http("GET", path)).status == 404


async def test_a_service_that_stops_sends_its_clients_elsewhere(
    stack: Stack, session: aiohttp.ClientSession, alice: Client
) -> None:
    ada = await _enter(stack, session, alice, await alice.room(), "Ada")
    begun = time.monotonic()
    stopping = asyncio.create_task(stack.stop("webrtc"))
    assert await ada.closed() == 1012
    assert time.monotonic() - begun < DEADLINE
    assert ada.seen[-1]["error"] == "RESTARTING"
    await stopping
    await stack.start("webrtc")
    await stack.wait_ready(30.0, "webrtc")
