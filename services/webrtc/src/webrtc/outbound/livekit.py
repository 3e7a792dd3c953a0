"""Media through a LiveKit server, for those who outgrow one machine: rooms and tokens by its server API.

The API is Twirp: JSON posted to ``/twirp/livekit.RoomService/<Method>`` with a token that grants just that call
(https://docs.livekit.io/server/room-management; grants: https://docs.livekit.io/home/get-started/authentication).
Rooms are made by LiveKit with the first participant anyway, so a CreateRoom that failed keeps nobody out.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import jwt
import msgspec

from resilience.deadline import hard_timeout
from resilience.errors import BulkheadFull, CallTimeout
from webrtc.ports import Tell

CALL_TIMEOUT = 2.0  # s
CALL_TOKEN_SECONDS = 60
JOIN_TOKEN_SECONDS = 3_600
"""To connect, and to connect again after a cut; who stays connected gets new ones from LiveKit."""
EMPTY_ROOM_SECONDS = 300

log = logging.getLogger("webrtc.livekit")


class LiveKit:
    """Gives participants a token for the LiveKit room of the same id; media, and its signalling, are LiveKit's then."""

    name = "livekit"

    def __init__(self, tell: Tell, url: str, api_key: str, api_secret: str) -> None:
        """``url``: the server's, ws(s) or http(s); participants get it as ws(s)."""
        self._tell = tell
        self._socket_url = with_scheme(url, web=False)
        self._api = with_scheme(url, web=True) + "/twirp/livekit.RoomService/"
        self._key = api_key
        self._secret = api_secret
        self._session: aiohttp.ClientSession | None = None
        self._rooms: dict[str, dict[str, bool]] = {}  # who is in, and whether they publish

    async def prepare(self) -> None:
        """It runs elsewhere."""

    async def enter(self, room_id: str, member_id: str, publishes: bool) -> None:
        """Makes the room if it is new, and tells the participant where to go."""
        members = self._rooms.get(room_id)
        if members is None:
            members = self._rooms[room_id] = {}
            body = {"name": room_id, "empty_timeout": EMPTY_ROOM_SECONDS}
            await self._call("CreateRoom", body, {"roomCreate": True})
        members[member_id] = publishes
        self._send_token(room_id, member_id)

    async def leave(self, room_id: str, member_id: str) -> None:
        """Removes the participant from LiveKit's room."""
        if self._rooms.get(room_id, {}).pop(member_id, None) is not None:
            body = {"room": room_id, "identity": member_id}
            await self._call("RemoveParticipant", body, {"roomAdmin": True, "room": room_id})

    async def close(self, room_id: str) -> None:
        """Deletes LiveKit's room, which disconnects everybody."""
        if self._rooms.pop(room_id, None) is not None:
            await self._call("DeleteRoom", {"room": room_id}, {"roomCreate": True})

    async def signal(self, room_id: str, member_id: str, data: bytes) -> None:
        """A request to restart gets a new token; LiveKit's clients say everything else to LiveKit."""
        if member_id in self._rooms.get(room_id, {}) and _wants_restart(data):
            self._send_token(room_id, member_id)

    async def aclose(self) -> None:
        """Gives the connections back. Rooms stay: their participants may be on other instances."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _send_token(self, room_id: str, member_id: str) -> None:
        grants = {
            "room": room_id,
            "roomJoin": True,
            "canPublish": self._rooms[room_id][member_id],
            "canSubscribe": True,
            "canPublishData": False,  # messages go through our own signalling
        }
        token = self._token(grants, JOIN_TOKEN_SECONDS, member_id)
        self._tell(room_id, member_id, msgspec.json.encode({"livekit": {"url": self._socket_url, "token": token}}))

    def _token(self, grants: Mapping[str, object], seconds: int, identity: str = "") -> str:
        now = int(time.time())
        claims = {"iss": self._key, "sub": identity, "nbf": now - 5, "exp": now + seconds, "video": dict(grants)}
        return jwt.encode(claims, self._secret, algorithm="HS256")

    async def _call(self, method: str, body: Mapping[str, object], grants: Mapping[str, object]) -> None:
        """One call; a failure is logged and ends there: a room is made, and emptied, by LiveKit itself as well."""
        try:
            status = await hard_timeout(self._post(method, body, grants), CALL_TIMEOUT, name="livekit")
        except (aiohttp.ClientError, OSError, CallTimeout, BulkheadFull) as error:
            log.warning("livekit: %s failed: %s", method, type(error).__name__)
            return
        if status not in (200, 404):  # 404: it is gone already
            log.warning("livekit: %s answered %d", method, status)

    async def _post(self, method: str, body: Mapping[str, object], grants: Mapping[str, object]) -> int:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT))
        headers = {"Authorization": f"Bearer {self._token(grants, CALL_TOKEN_SECONDS)}"}
        async with self._session.post(self._api + method, json=body, headers=headers) as response:
            await response.content.read(64 * 1024)
            return response.status


def with_scheme(url: str, *, web: bool) -> str:
    """A ws(s) or http(s) URL as the one or the other, without a slash at its end."""
    parts = urlsplit(url)
    secure = parts.scheme in ("wss", "https")
    scheme = ("https" if secure else "http") if web else ("wss" if secure else "ws")
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def _wants_restart(data: bytes) -> bool:
    try:
        message: Any = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(message, dict) and message.get("restart") is True
