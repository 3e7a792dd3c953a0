"""One participant's two PeerConnections: what it says is done one after the other, by a task of its own, and waits in
a bounded inbox until then.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol

from webrtc.outbound.sfu.descriptions import BadDescription
from webrtc.outbound.sfu.fanout import Counts, Feed
from webrtc.outbound.sfu.inside import Address
from webrtc.outbound.sfu.peer import Peer
from webrtc.outbound.sfu.publication import Publication
from webrtc.outbound.sfu.signals import Malformed, Pc, Reply, Signal, decode, encode
from webrtc.outbound.sfu.subscription import Subscription

MAX_INBOX = 64  # signals of one participant that wait

log = logging.getLogger("webrtc.sfu")


class Around(Protocol):
    """What a participant needs of its room."""

    @property
    def addresses(self) -> Sequence[Address]:
        """Where media is received."""
        ...

    @property
    def counts(self) -> Counts:
        """For the metrics."""
        ...

    def tell(self, member_id: str, data: bytes) -> None:
        """A message for a participant."""
        ...

    def feeds_for(self, participant: "Participant") -> list[Feed]:
        """What the others publish."""
        ...

    def refresh(self) -> None:
        """What somebody publishes has changed."""
        ...

    def recount(self) -> None:
        """Somebody's connections have changed."""
        ...

    def discard(self, peer: Peer) -> None:
        """Closes a PeerConnection behind everybody's back."""
        ...


class Participant:
    """One participant's two PeerConnections."""

    def __init__(self, room: Around, member_id: str, *, publishes: bool) -> None:
        self.id = member_id
        self.room = room
        self.publishes = publishes
        self.publication: Publication | None = None
        self.subscription: Subscription | None = None
        self._sub_epoch = 0
        self._sub_over = False  # it failed: not offered again until the participant asks
        self._inbox: deque[Signal | tuple[Peer, str]] = deque()
        self._signals = 0
        self._changed = False
        self._wake = asyncio.Event()
        self._task = asyncio.ensure_future(self._run())

    @property
    def feeds(self) -> list[Feed]:
        """What it publishes."""
        return self.publication.feeds if self.publication is not None else []

    def begin(self) -> None:
        """Asks it to publish, and offers it what others publish, on new RTCPeerConnections."""
        if self.publishes:
            self.tell(Reply("pub", publish=True))
        self._signals += 1
        self._put(Signal("sub", restart=True))

    def tell(self, reply: Reply) -> None:
        """A message for the participant."""
        self.room.tell(self.id, encode(reply))

    def fail(self, pc: Pc, error: str, message: str) -> None:
        """Tells what was wrong with a signal; nothing else has changed."""
        self.tell(Reply(pc, error=error, message=message))

    def take(self, data: bytes) -> None:
        """A signal; what is malformed or too much is answered with an error."""
        try:
            signal = decode(data)
        except Malformed as error:
            return self.fail("pub", "malformed", str(error))
        if self._signals >= MAX_INBOX:
            return self.fail(signal.pc, "limit", f"more than {MAX_INBOX} signals are waiting")
        self._signals += 1
        return self._put(signal)

    def _put(self, item: Signal | tuple[Peer, str]) -> None:
        self._inbox.append(item)
        self._wake.set()

    def refresh(self) -> None:
        """What others publish has changed."""
        self._changed = True
        self._wake.set()

    def _on_state(self, peer: Peer, state: str) -> None:
        self._put((peer, state))

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._inbox:
                await self._do(self._inbox.popleft())
            if self._changed:
                await self._guarded("sub", self._subscribe())
            self.room.recount()

    async def _do(self, item: Signal | tuple[Peer, str]) -> None:
        if isinstance(item, Signal):
            self._signals -= 1
            await self._guarded(item.pc, self._handle(item))
        else:
            await self._guarded(item[0].pc_name, self._state(*item))

    async def _guarded(self, pc: Pc, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except BadDescription as error:
            self.fail(pc, "description", str(error))
        except Exception:  # one participant's trouble stays its own
            log.exception("sfu: %s of a participant", pc)
            self.fail(pc, "unavailable", "the SFU could not do that")

    # -- what it says

    async def _handle(self, signal: Signal) -> None:
        if signal.restart:
            await (self._restart_pub() if signal.pc == "pub" else self._restart_sub())
        elif signal.description is None:
            return  # a candidate: not needed (see descriptions)
        elif signal.pc == "sub":
            await self._answered(signal)
        elif not self.publishes:
            self.fail("pub", "not_allowed", "no grant to publish")
        elif signal.description.type != "offer":
            raise BadDescription("expected an offer")
        else:
            await self._publish(signal.epoch, signal.description.sdp)

    async def _publish(self, epoch: int, sdp: str) -> None:
        current = self.publication
        if current is None or current.epoch != epoch or current.over:
            current = Publication(self.id, epoch, self.room.addresses, self._on_state, self.room.counts)
        try:
            answer = await current.answer(sdp)
        except BaseException:
            if current is not self.publication:
                self.room.discard(current)
            raise
        if current is not self.publication:
            self._replace_publication(current)
            current.expect()
        self.tell(Reply("pub", epoch, description=answer))
        self.room.refresh()

    def _replace_publication(self, new: Publication | None) -> None:
        if self.publication is not None:
            self.room.discard(self.publication)
        self.publication = new

    async def _answered(self, signal: Signal) -> None:
        subscription = self.subscription
        if subscription is None or signal.epoch != subscription.epoch or signal.description is None:
            return  # an answer to one that is over
        if signal.description.type != "answer":
            raise BadDescription("expected an answer")
        await subscription.accept(signal.description.sdp)
        self.refresh()  # something may have changed since the offer

    async def _restart_pub(self) -> None:
        if self.publication is not None:
            self._over(self.publication, "restart")

    async def _restart_sub(self) -> None:
        if self.subscription is not None:
            self.room.discard(self.subscription)
            self.subscription = None
        self._sub_over = False
        self.refresh()

    # -- what happens to it

    async def _state(self, peer: Peer, state: str) -> None:
        if peer not in (self.publication, self.subscription):
            return
        if state == "connected":
            peer.came_up()
            self.refresh()
        else:
            self._over(peer, state)

    def _over(self, peer: Peer, reason: str) -> None:
        self.room.discard(peer)
        if peer is self.publication:
            self.publication = None
            self.room.refresh()
        else:
            self.subscription = None
            self._sub_over = True
        self.tell(Reply(peer.pc_name, peer.epoch, closed=reason))

    async def _subscribe(self) -> None:
        """Offers what is published by others, if that is not what it has."""
        feeds = self.room.feeds_for(self)
        if self._sub_over or (self.subscription is None and not feeds):
            self._changed = False
            return
        if self.subscription is None:
            self._sub_epoch = max(self._sub_epoch + 1, int(time.time() * 1000))
            self.subscription = Subscription(self._sub_epoch, self.room.addresses, self._on_state, self.room.counts)
        if not self.subscription.ready:
            return  # its answer, or its being connected, brings us back
        self._changed = False
        if self.subscription.assign(feeds):
            await self._offer(self.subscription)

    async def _offer(self, subscription: Subscription) -> None:
        try:
            description, tracks = await subscription.offer()
        except Exception:
            self._over(subscription, "failed")
            raise
        self.tell(Reply("sub", subscription.epoch, description=description, tracks=tracks))

    async def close(self) -> None:
        """It has left."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        for peer in (self.publication, self.subscription):
            if peer is not None:
                self.room.discard(peer)
        self.publication = self.subscription = None
