"""The signalling's WebSocket, ``/ws?token=…[&resume=…&seq=…]``, on the service's own HTTP port.

Uvicorn gives an upgraded connection away to the class that its configuration names; here that is picows' protocol,
which is several times as fast as a WebSocket inside an ASGI application. Its constructor is not public: the version is
pinned, and a test guards what is used.

The upgrade is always accepted, because a browser cannot read why one was refused: who cannot join is told with a
``refused`` message and a close code.
"""

import asyncio
from typing import Any
from urllib.parse import parse_qs

from picows import WSAutoPingStrategy, WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest
from picows.picows import WSProtocol  # type: ignore[attr-defined]

from service_kit import logs
from webrtc.model import Close
from webrtc.usecases.signalling.dispatch import Dispatcher
from webrtc.usecases.signalling.hub import Hub
from webrtc.usecases.signalling.messages import MESSAGE_LIMIT
from webrtc.usecases.signalling.participant import Participant

PATH = "/ws"
HANDSHAKE_SECONDS = 5.0
CLOSE_SECONDS = 1.0
"""How long the other side may take to answer our good-bye, and to read what was sent before it."""
READ_BUFFER = 8_192
NO_CODE = 1005
"""A close frame without a code (RFC 6455, section 7.4.1)."""
LOST_CODE = 1006

log = logs.get_logger("websocket")

_TEXT, _PING, _PONG, _CLOSE = WSMsgType.TEXT, WSMsgType.PING, WSMsgType.PONG, WSMsgType.CLOSE
_CONTINUATION = WSMsgType.CONTINUATION


class _Quiet:
    """Picows' logger: its texts hold addresses, and at lower levels tokens and payloads."""

    def isEnabledFor(self, _level: int) -> bool:  # noqa: N802 - the standard library's name
        return False

    def debug(self, *_: object) -> None:
        return

    log = info = warning = error = debug

    def exception(self, *_: object) -> None:
        log.error("handling a message failed", exc_info=True)


class Upgraded(WSProtocol):  # type: ignore[misc] # a compiled class
    """An upgraded connection: uvicorn calls the first two, the event loop the rest."""

    def data_received(self, data: bytes) -> None:
        """The handshake's bytes, once, before the transport is handed over."""
        while data:
            buffer = self.get_buffer(-1)
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            self.buffer_updated(size)
            data = data[size:]


class Gate:
    """What uvicorn's configuration names: called for each upgrade."""

    def __init__(self, hub: Hub, dispatcher: Dispatcher) -> None:
        self._hub = hub
        self._dispatcher = dispatcher
        self._logger = _Quiet()
        self.joining: set[asyncio.Task[None]] = set()

    def __call__(self, **_: object) -> Upgraded:
        """The protocol of one connection."""
        return Upgraded(
            None,  # host and port: a client's
            None,  # path: a client's
            False,
            self._listener,
            self._logger,
            True,
            HANDSHAKE_SECONDS,
            False,
            20,
            20,
            WSAutoPingStrategy.PING_WHEN_IDLE,
            False,
            MESSAGE_LIMIT,
            None,  # extra headers
            READ_BUFFER,
        )

    def _listener(self, request: WSUpgradeRequest) -> "Connection | None":
        path, _, query = request.path.decode("latin-1").partition("?")
        if path != PATH:
            return None
        return Connection(self, self._hub, self._dispatcher, query)


class Connection(WSListener):
    """One WebSocket. Keeps ``Socket`` of the signalling."""

    def __init__(self, gate: Gate, hub: Hub, dispatcher: Dispatcher, query: str) -> None:
        super().__init__()
        self.paused_at: float | None = None
        self._gate = gate
        self._hub = hub
        self._receive = dispatcher.receive
        self._dispatcher = dispatcher
        self._query = query
        self._participant: Participant | None = None
        self._parts: list[bytes] | None = None
        self._closing = False
        self._abort: asyncio.TimerHandle | None = None
        self._transport: WSTransport

    # -- the other side

    def on_ws_connected(self, transport: WSTransport) -> None:
        """The handshake is done."""
        self._transport = transport
        self._hub.connections += 1
        task = asyncio.get_running_loop().create_task(self._join())
        self._gate.joining.add(task)
        task.add_done_callback(self._gate.joining.discard)

    async def _join(self) -> None:
        token, resume, seq = _asked(self._query)
        self._query = ""
        participant = await self._hub.join(self, token, resume, seq)
        self._participant = participant
        if participant is not None and self._transport.is_disconnected:
            self._hub.dropped(participant, self, LOST_CODE)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """One frame."""
        kind, participant = frame.msg_type, self._participant
        if participant is None or participant.socket is not self:
            self._unjoined(transport, frame)
        elif kind == _TEXT and frame.fin and self._parts is None:
            self._receive(participant, frame.get_payload_as_bytes())
        else:
            self._uncommon(participant, transport, frame)

    def _unjoined(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == _CLOSE:
            self._good_bye(transport)

    def _uncommon(self, participant: Participant, transport: WSTransport, frame: WSFrame) -> None:
        participant.heard_at = self._hub.clock.monotonic()
        match frame.msg_type:
            case WSMsgType.PING:
                transport.send_pong(frame.get_payload_as_bytes())
            case WSMsgType.PONG:
                pass
            case WSMsgType.CLOSE:
                self._good_bye(transport)
            case WSMsgType.TEXT | WSMsgType.CONTINUATION:
                self._part(participant, frame)
            case _:
                self._dispatcher.misunderstood(participant, b"")

    def _part(self, participant: Participant, frame: WSFrame) -> None:
        """Of a message in several frames."""
        if (frame.msg_type == _TEXT) is not (self._parts is None):
            self._hub.drop(participant, Close.MALFORMED)
            return
        parts = self._parts = self._parts or []
        parts.append(frame.get_payload_as_bytes())
        if sum(map(len, parts)) > MESSAGE_LIMIT or len(parts) > MESSAGE_LIMIT // 64:
            self._hub.drop(participant, Close.TOO_BIG)
        elif frame.fin:
            self._parts = None
            self._receive(participant, b"".join(parts))

    def _good_bye(self, transport: WSTransport) -> None:
        if not transport.is_close_frame_sent:
            code = _received(transport)
            # 1005 stands for no code at all and is never sent (RFC 6455, section 7.4.1).
            transport.send_close(int(Close.NORMAL) if code == NO_CODE else code)  # type: ignore[arg-type] # any code
        transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """The connection is gone."""
        self._hub.connections -= 1
        if self._abort is not None:
            self._abort.cancel()
        if _sent(transport) == Close.TOO_BIG and not self._closing:
            self._hub.closes[int(Close.TOO_BIG)] += 1  # picows closes by itself then
        if self._participant is not None:
            self._hub.dropped(self._participant, self, _received(transport))

    def pause_writing(self) -> None:
        """The other side does not read as fast as it is written to."""
        self.paused_at = self._hub.clock.monotonic()

    def resume_writing(self) -> None:
        """It has caught up."""
        self.paused_at = None

    # -- the hub

    def send(self, text: bytes) -> None:
        """One message."""
        self._transport.send(_TEXT, text)

    def ping(self) -> None:
        """A ping."""
        self._transport.send_ping()

    def close(self, code: Close, reason: str = "") -> None:
        """Good-bye; the connection ends soon, however the other side takes it."""
        if self._closing:
            return
        self._closing = True
        self._transport.send_close(int(code), reason.encode())  # type: ignore[arg-type] # codes of our own
        loop = asyncio.get_running_loop()
        self._abort = loop.call_later(CLOSE_SECONDS, self._transport.disconnect, False)

    @property
    def buffered(self) -> int:
        """Bytes that wait to be written."""
        return self._transport.underlying_transport.get_write_buffer_size()


def _asked(query: str) -> tuple[str, str, int]:
    """Token, resume secret and last seen number of the URL."""
    fields: dict[str, Any] = parse_qs(query, max_num_fields=10) if query.count("&") < 10 else {}
    seq = fields.get("seq", ["0"])[0]
    number = int(seq) if seq.isascii() and seq.isdecimal() and len(seq) < 16 else -1
    return fields.get("token", [""])[0], fields.get("resume", [""])[0], number


def _received(transport: WSTransport) -> int:
    """The code of the other side's good-bye; ``LOST_CODE`` without one."""
    handshake = transport.close_handshake
    if not handshake or handshake.recv is None:
        return LOST_CODE
    return _number(handshake.recv.code) or NO_CODE


def _sent(transport: WSTransport) -> int:
    handshake = transport.close_handshake
    return _number(handshake.sent.code) if handshake and handshake.sent else LOST_CODE


def _number(code: Any) -> int:
    return int(code)
