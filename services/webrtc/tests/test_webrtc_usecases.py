"""The use cases of the WebRTC service on ports in memory and a clock that stands still."""

import base64

import jwt
import pytest

from resilience import CircuitBreaker, FakeClock, RowPolicy
from webrtc.degradation import REDIS, classify
from webrtc.model import Invalid, NotOwner, Room, RoomUnknown, place_of
from webrtc.outbound.tokens import JwtSigner
from webrtc.usecases.ice import IceServers
from webrtc.usecases.memory_rooms import MemoryRooms
from webrtc.usecases.rooms import TICKET_SECONDS, Rooms
from webrtc.usecases.shared_rooms import SharedRooms

SECRET = "a-test-secret-of-at-least-32-bytes!"
STUN = ("stun:stun.test:3478",)


class Store(MemoryRooms):
    """Rooms in a dict."""

    async def restore(self, room: Room) -> bool:
        raise AssertionError("nothing was made elsewhere")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def rooms(clock: FakeClock) -> Rooms:
    breaker = CircuitBreaker(
        REDIS.id, failure_threshold=3, recovery_timeout=30, success_threshold=1, classify=classify, clock=clock
    )
    policy = RowPolicy(REDIS, breaker=breaker, clock=clock)
    ice = IceServers(STUN, None, "", 3600, clock)
    return Rooms(SharedRooms(Store(), MemoryRooms(), policy), JwtSigner(SECRET), ice, "ws://here/ws", clock)


async def test_a_room_is_read_by_all_and_deleted_by_its_owner(rooms: Rooms) -> None:
    room = (await rooms.create("alice", "Standup")).value
    assert (room.owner_id, room.max_participants) == ("alice", 10)
    assert (await rooms.get(room.id)).value == room
    with pytest.raises(NotOwner):
        await rooms.delete("bob", room.id)
    await rooms.delete("alice", room.id)
    for attempt in (rooms.get(room.id), rooms.ticket("bob", room.id), rooms.get("../x")):
        with pytest.raises(RoomUnknown):
            await attempt


async def test_pages_show_own_rooms_once_newest_first(rooms: Rooms, clock: FakeClock) -> None:
    for number in range(5):
        clock.move(1)
        await rooms.create("alice", f"room {number}")
    await rooms.create("bob", "other")
    names, cursor = [], ""
    while True:
        page = (await rooms.page("alice", 2, cursor)).value
        names += [room.name for room in page.items]
        if not (cursor := page.next_cursor):
            break
    assert names == [f"room {number}" for number in (4, 3, 2, 1, 0)]


@pytest.mark.parametrize(
    ("name", "participants", "wrong"),
    [
        ("", 0, {"name"}),
        ("  ", 0, {"name"}),
        ("x" * 101, 1, {"name", "max_participants"}),
        ("a\x00", 101, {"name", "max_participants"}),
        ("\ud800", -1, {"name", "max_participants"}),
    ],
)
async def test_every_wrong_field_is_named(rooms: Rooms, name: str, participants: int, wrong: set[str]) -> None:
    with pytest.raises(Invalid) as raised:
        await rooms.create("alice", name, participants)
    assert raised.value.fields.keys() == wrong


@pytest.mark.parametrize("cursor", ["x", "====", "YQ==", "é", base64.urlsafe_b64encode(b"+").decode()])
def test_a_foreign_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(Invalid):
        place_of(cursor)


async def test_a_ticket_lets_one_user_into_one_room_for_an_hour(rooms: Rooms, clock: FakeClock) -> None:
    room = (await rooms.create("alice", "Standup")).value
    ticket = (await rooms.ticket("bob", room.id)).value
    options = {"verify_exp": False, "verify_iat": False}
    claims = jwt.decode(ticket.token, SECRET, algorithms=["HS256"], audience="webrtc", options=options)  # type: ignore[arg-type]
    assert (claims["sub"], claims["room"]) == ("bob", room.id)
    assert claims["exp"] == int(clock.time()) + TICKET_SECONDS
    assert (ticket.ws_url, ticket.expires_in) == ("ws://here/ws", TICKET_SECONDS)
    assert [server.urls for server in ticket.ice_servers] == [STUN]
    with pytest.raises(jwt.InvalidAudienceError):
        jwt.decode(ticket.token, SECRET, algorithms=["HS256"], audience="auralink", options=options)  # type: ignore[arg-type]
