"""What happens with a client's message: who gets what, who may do what, and what is too much."""

from collections import Counter
from collections.abc import Callable

import msgspec

from webrtc.model import Close, Member
from webrtc.usecases.signalling import messages
from webrtc.usecases.signalling.hub import LEFT, Hub
from webrtc.usecases.signalling.limits import RETRY_AFTER
from webrtc.usecases.signalling.messages import (
    DATA_LIMIT,
    SFU,
    Ack,
    AskIce,
    Data,
    Kick,
    Leave,
    Media,
    Mute,
    Path,
    Ping,
    Signal,
    Stats,
)
from webrtc.usecases.signalling.participant import Participant

ID_LENGTH = 64
"""Characters of an unknown participant's id that are said again."""
LIMITED, UNKNOWN, MALFORMED = "limited", "unknown", "malformed"


class Dispatcher:
    """One for all participants; ``counts`` is by the kind of message, and by what was wrong with one."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._cluster = hub.cluster
        self._now = hub.clock.monotonic
        self._patience = hub.limits.flooding_seconds
        self._malformed = hub.limits.malformed
        self.counts: Counter[type | str] = Counter()
        self._handlers: dict[type, Callable[[Participant, object], None]] = {
            kind: getattr(self, f"_{name}") for name, kind in messages.KINDS.items()
        }

    def receive(self, sender: Participant, text: bytes) -> None:
        """One message of a participant that is here. Never raises for what a client can send."""
        sender.heard_at = now = self._now()
        if not sender.bucket.take(now):
            self._too_many(sender, now)
            return
        try:
            # What is passed on as it came must be text for whoever gets it (RFC 6455, section 8.1).
            if not text.isascii():
                text.decode()
            message = messages.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.misunderstood(sender, text)
            return
        kind = type(message)
        self.counts[kind] += 1
        self._handlers[kind](sender, message)

    # -- what is wrong

    def _too_many(self, sender: Participant, now: float) -> None:
        self.counts[LIMITED] += 1
        tell, enough = sender.flood.over(now, self._patience)
        if enough:
            self._hub.drop(sender, Close.FLOODING)
        elif tell:
            _error(sender, "RATE_LIMITED", "Too many messages.", retry_after=RETRY_AFTER)

    def misunderstood(self, sender: Participant, text: bytes) -> None:
        """Something that is none of our messages; after too many of them the connection ends."""
        if messages.unknown_type(text):
            self.counts[UNKNOWN] += 1
            _error(sender, "UNKNOWN_TYPE", "There is no such type of message.")
            return
        self.counts[MALFORMED] += 1
        sender.malformed += 1
        if sender.malformed >= self._malformed:
            self._hub.drop(sender, Close.MALFORMED)
        else:
            _error(sender, "MALFORMED", "The message could not be understood.")

    # -- between peers

    def _signal(self, sender: Participant, message: Signal) -> None:
        state, to = sender.room, message.to
        target = state.here.get(to)
        if target is not None:
            target.tell(messages.signal(sender.member.id, message.data))
        elif to == SFU:
            self._signal_sfu(sender, message)
        else:
            self._send_elsewhere(sender, to, lambda: messages.signal(sender.member.id, message.data))

    def _signal_sfu(self, sender: Participant, message: Signal) -> None:
        if not self._hub.media.signal(sender.room, sender.member.id, bytes(message.data)):
            _error(sender, "NO_SFU", "Media does not go through the SFU now.", to=SFU)

    def _data(self, sender: Participant, message: Data) -> None:
        if not sender.grants.data:
            _forbidden(sender)
        elif len(memoryview(message.data)) > DATA_LIMIT:
            _error(sender, "TOO_BIG", f"Data may have {DATA_LIMIT} bytes.")
        elif message.to is None:
            self._broadcast(sender, messages.data(sender.member.id, message.data))
        elif (target := sender.room.here.get(message.to)) is not None:
            target.tell(messages.data(sender.member.id, message.data))
        else:
            self._send_elsewhere(sender, message.to, lambda: messages.data(sender.member.id, message.data))

    def _broadcast(self, sender: Participant, message: bytes) -> None:
        state = sender.room
        state.tell(message, but=sender.member.id)
        reached = [self._cluster.send(state.id, member, message) for member in list(state.elsewhere.values())]
        if not all(reached):
            self._unreachable(sender, None)

    def _send_elsewhere(self, sender: Participant, to: str, make: Callable[[], bytes]) -> None:
        member = self._elsewhere(sender, to)
        if member is not None and not self._cluster.send(sender.room.id, member, make()):
            self._unreachable(sender, to)

    def _elsewhere(self, sender: Participant, to: str) -> Member | None:
        member = sender.room.elsewhere.get(to)
        if member is None:
            _error(sender, "NO_PARTICIPANT", "There is no such participant.", to=to[:ID_LENGTH])
        return member

    def _unreachable(self, sender: Participant, to: str | None) -> None:
        text = "The participant is on another instance, which cannot be reached now."
        _error(sender, "PEER_UNREACHABLE", text, retry_after=RETRY_AFTER, to=to)

    # -- about participants

    def _media(self, sender: Participant, message: Media) -> None:
        if not sender.grants.publish and (message.audio or message.video):
            _forbidden(sender)
        elif (sender.member.audio, sender.member.video) != (message.audio, message.video):
            self._hub.update(sender, audio=message.audio, video=message.video)

    def _mute(self, sender: Participant, message: Mute) -> None:
        if not sender.grants.moderate:
            _forbidden(sender)
            return
        text = messages.server("mute", by=sender.member.id, kind=message.kind)
        target = sender.room.here.get(message.participant)
        if target is not None:
            target.tell(text)
        else:
            self._send_elsewhere(sender, message.participant, lambda: text)

    def _kick(self, sender: Participant, message: Kick) -> None:
        if not sender.grants.moderate:
            _forbidden(sender)
            return
        member = sender.room.find(message.participant)
        if member is None:
            _error(sender, "NO_PARTICIPANT", "There is no such participant.", to=message.participant[:ID_LENGTH])
        elif not self._hub.kick(sender.room.id, member):
            self._unreachable(sender, message.participant)

    def _stats(self, sender: Participant, message: Stats) -> None:
        quality = sender.meter.add(message.report, self._now())
        if quality != sender.member.quality:
            self._hub.update(sender, quality=quality)

    def _path(self, sender: Participant, message: Path) -> None:
        sender.meter.path(message.peer, message.state, message.relayed)
        if message.state == "failed" and message.peer != SFU:
            relay_tried = message.relayed or self._hub.briefing.stun_only
            self._hub.media.path_failed(sender.room, relay_tried=relay_tried)

    def _ice(self, sender: Participant, _message: AskIce) -> None:
        self._hub.briefing.ice(sender)

    # -- about the connection

    def _ack(self, sender: Participant, message: Ack) -> None:
        sender.outbox.acknowledge(message.seq)

    def _ping(self, sender: Participant, _message: Ping) -> None:
        if sender.socket is not None:
            sender.socket.send(messages.PONG)

    def _leave(self, sender: Participant, _message: Leave) -> None:
        socket = sender.socket
        self._hub.leave(sender, LEFT)
        if socket is not None:
            self._hub.close(socket, Close.NORMAL, "left")


def _error(participant: Participant, error: str, message: str, **extra: object) -> None:
    present = {name: value for name, value in extra.items() if value is not None}
    participant.tell(messages.server("error", error=error, message=message, **present))


def _forbidden(participant: Participant) -> None:
    _error(participant, "FORBIDDEN", "Your token does not allow this.")
