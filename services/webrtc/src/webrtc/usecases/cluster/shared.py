"""The cluster of all instances, over Redis; and of this instance alone while Redis is away (row W1, webrtc.redis).

Which of the two it is changes at run time with the row's circuit, and nobody's participants are dropped by it. Whatever
the signalling tells is queued and written behind, by one task and in order; what the others tell is read by a second
one on a connection of its own; a third one renews the lease. So no participant here ever waits for Redis, but for the
first one of a room, and that one no longer than the row allows.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from resilience import CircuitState, Clock, RowPolicy, Transition
from resilience.ambient import RANDOM
from resilience.deadline import hard_timeout
from resilience.errors import POLICY_FAILURES
from webrtc.degradation import MEMORY_ROOMS
from webrtc.model import Call, Close, Member, Opened, Room, RoomElsewhere, RoomUnknown
from webrtc.ports import Local, Note, StoreUnavailable
from webrtc.usecases.cluster import codec
from webrtc.usecases.cluster.merge import earlier, settle
from webrtc.usecases.cluster.outbox import KEPT_SECONDS, Outbox
from webrtc.usecases.cluster.peers import BEAT_SECONDS, GRACE_SECONDS, Peers
from webrtc.usecases.cluster.store import Change, ClusterStore, Entry, Position, Pulse, Snapshot
from webrtc.usecases.cluster.view import SFU, RoomView
from webrtc.usecases.memory_rooms import MemoryRooms
from webrtc.usecases.shared_rooms import SharedRooms

AWAY = (StoreUnavailable, *POLICY_FAILURES)
"""What a call under the row's policy raises when Redis did not serve it."""
AGAIN_SECONDS = 0.25
"""Between looks at whether Redis is there, once something has failed."""
READ_SECONDS = 2.5
RETRY_SECONDS = (2.0, 5.0)
"""Whoever is refused comes back after a time in between: Redis is found about a second after its return."""
LONGEST_PAUSE = 1.0
AT_ONCE = 50
"""Rooms that are compared with Redis in one round trip; as many are looked after with each beat."""
FLUSH_SECONDS = 1.0


class SharedCluster:
    """Keeps ``ports.Cluster``. Its three tasks are ``write_forever``, ``read_forever`` and ``beat_forever``.

    ``slot``: an address that no other process can have at the same time, the same for one that takes its place.
    ``beat``: seconds between renewals of the lease; ``grace``: seconds after an outage in which nobody is held dead.
    """

    def __init__(
        self,
        instance: str,
        store: ClusterStore,
        rooms: SharedRooms,
        memory: MemoryRooms,
        policy: RowPolicy,
        clock: Clock,
        note: Note,
        *,
        slot: str,
        beat: float = BEAT_SECONDS,
        grace: float = GRACE_SECONDS,
    ) -> None:
        self.instance = instance
        self.outbox = Outbox()
        self._slot = slot
        self._store = store
        self._rooms = rooms
        self._memory = memory
        self._policy = policy
        self._clock = clock
        self._note = note
        self._beat = beat
        self._peers = Peers(instance, clock, beat, grace)
        self._alone = False
        self._views: dict[str, RoomView] = {}
        self._dirty: set[str] = set()
        self._deleted: set[str] = set()
        self._begun = asyncio.Event()
        self._position = Position()
        self._work = asyncio.Event()
        self._kick = asyncio.Event()
        policy.breaker.subscribe(self._circuit_changed)
        rooms.elsewhere = self._only_elsewhere

    def attach(self, local: Local) -> None:
        """See ports.Cluster."""
        self._local = local

    @property
    def alone(self) -> bool:
        """See ports.Cluster. Ends when everything was merged, a moment after Redis is back."""
        return self._alone

    @property
    def held_elsewhere(self) -> int:
        """Rooms with participants on other instances, at last sight."""
        return self._peers.held

    # -- what the signalling asks

    async def open(self, room_id: str) -> Opened:
        """See ports.Cluster."""
        if self._memory.is_gone(room_id):
            raise RoomUnknown
        view = self._views[room_id] = RoomView(room_id, self.instance, self._local)
        view.hold()
        try:
            await self._open(view)
        except BaseException:
            if self._views.get(room_id) is view:
                del self._views[room_id]
            raise
        finally:
            view.release()
        if view.room is None:
            raise RoomUnknown
        return Opened(view.room, tuple(view.members.values()), view.call, view.mode)

    async def _open(self, view: RoomView) -> None:
        try:
            (snapshot,) = await self._policy.call(self._store.look, self.instance, [view.room_id])
        except AWAY:
            self._policy.note_fallback(MEMORY_ROOMS)
            view.room = self._known(view.room_id)
            self._compare(view.room_id)
            return
        self._peers.era(snapshot.era)
        if snapshot.room is None:
            view.room = self._memory.is_made(view.room_id)
            if view.room is None:
                self._memory.forget(view.room_id)
                raise RoomUnknown
        else:
            self._memory.note(snapshot.room)
            elsewhere = settle(self.instance, (), snapshot.members, self._peers.dead).elsewhere
            if not elsewhere:  # what is left of a call that has ended, and is about to be removed
                snapshot = replace(snapshot, call=None, mode="p2p", home="")
            view.settle(snapshot, elsewhere, self._peers.dead)
        if self._alone or self.outbox:  # that this instance left the room before may be written only now
            self._compare(view.room_id)

    def _known(self, room_id: str) -> Room:
        room = self._memory.find(room_id)
        if room is None or self._only_elsewhere(room_id):
            raise RoomElsewhere(RANDOM.uniform(*RETRY_SECONDS))
        return room

    async def members(self, room_id: str) -> tuple[Member, ...]:
        """See ports.Cluster."""
        view = self._views.get(room_id)
        if view is not None:
            return tuple(view.members.values())
        try:
            (snapshot,) = await self._policy.call(self._store.look, self.instance, [room_id], watch=False)
        except AWAY:
            if self._only_elsewhere(room_id):
                raise RoomElsewhere(RANDOM.uniform(*RETRY_SECONDS)) from None
            return ()
        return tuple(settle(self.instance, (), snapshot.members, self._peers.dead).elsewhere.values())

    async def sfu_home(self, room_id: str) -> str:
        """See ports.Cluster."""
        home = self.instance
        await self._begun.wait()
        if not self._alone:
            home = await self._policy.call(self._store.claim, self.instance, room_id)
        if (view := self._views.get(room_id)) is not None:
            view.home = home
        return home

    # -- what the signalling tells

    def joined(self, room_id: str, member: Member) -> None:
        """See ports.Cluster."""
        if (view := self._views.get(room_id)) is not None:
            view.members.pop(member.id, None)
        self._tell(Change("put", room_id, member.id, member=member))

    def updated(self, room_id: str, member: Member) -> None:
        """See ports.Cluster."""
        self._tell(Change("put", room_id, member.id, member=member))

    def left(self, room_id: str, member: Member, reason: str) -> None:
        """See ports.Cluster."""
        self._tell(Change("drop", room_id, member.id, member=member, text=reason))

    def closed(self, room_id: str) -> None:
        """See ports.Cluster."""
        self._views.pop(room_id, None)
        self._dirty.discard(room_id)
        self._tell(Change("close", room_id, self.instance))

    def called(self, room_id: str, call: Call) -> None:
        """See ports.Cluster."""
        if (view := self._views.get(room_id)) is not None:
            view.call = call
        self._tell(Change("call", room_id, call=call))

    def moded(self, room_id: str, mode: str, reason: str) -> None:
        """See ports.Cluster."""
        if (view := self._views.get(room_id)) is not None:
            view.mode = mode
        self._tell(Change("mode", room_id, mode, text=reason))

    def deleted(self, room_id: str) -> None:
        """See ports.Cluster."""
        if self._alone:
            self._deleted.add(room_id)
        else:
            self._tell(Change("gone", room_id))

    def send(self, room_id: str, to: Member, message: bytes) -> bool:
        """See ports.Cluster."""
        return self._send(to.instance, codec.Deliver(room_id, to.id, message))

    def close(self, room_id: str, to: Member, code: Close) -> bool:
        """See ports.Cluster."""
        return self._send(to.instance, codec.CloseMember(room_id, to.id, int(code)))

    def signal_sfu(self, room_id: str, member_id: str, data: bytes) -> bool:
        """See ports.Cluster."""
        view = self._views.get(room_id)
        return view is not None and self._send(view.home, codec.ToSfu(room_id, member_id, data))

    def _send(self, instance: str, message: codec.Direct) -> bool:
        if self._alone or not self._peers.reachable(instance):
            return False
        self._work.set()
        return self.outbox.message(instance, message, self._clock.monotonic())

    def _tell(self, change: Change) -> None:
        if self._alone or not self.outbox.change(change):
            self._compare(change.room_id)
        self._work.set()

    def _compare(self, room_id: str) -> None:
        """The room will be compared with Redis: now in its turn, or when that is back."""
        if self._alone:
            if room_id in self._views:  # those that were left are found in Redis
                self._dirty.add(room_id)
        else:
            self.outbox.sync(room_id)
            self._work.set()

    # -- alone, and together again

    def _circuit_changed(self, change: Transition) -> None:
        if change.new is CircuitState.OPEN and not self._alone:
            self._alone = True
            self._policy.note_fallback(MEMORY_ROOMS)
            self.outbox.keep_messages(float("-inf"))
            self._dirty.update(self._views)
            self._local.set_alone(True)
        self._work.set()
        self._kick.set()

    def _only_elsewhere(self, room_id: str) -> bool:
        """Whether, at last sight, other instances held the room and this one does not."""
        return not self._local.local_members(room_id) and self._peers.holds(room_id)

    async def _mend(self) -> None:
        """Redis is back: merges everything, then this instance is not alone any more."""
        begun = self._clock.monotonic()
        await self._rooms.merge()
        self._found(await self._policy.call(self._store.beat, self.instance, self._slot))
        if self._deleted:
            changes = [Change("gone", room_id) for room_id in self._deleted]
            await self._policy.call(self._store.write, self.instance, self.outbox.numbered(changes))
            self._deleted.clear()
        compared = 0
        while await self._differs():
            compared += await self._compare_dirty()
        self.outbox.keep_messages(self._clock.monotonic() - KEPT_SECONDS)
        self._peers.steady()
        self._alone = False
        self._note("merged", rooms=compared, seconds=round(self._clock.monotonic() - begun, 3))
        self._local.set_alone(False)

    async def _differs(self) -> bool:
        """Whether rooms are left to be compared, those included that this instance has left meanwhile."""
        held = await self._policy.call(self._store.held, self.instance)
        self._dirty.update(held - self._views.keys())
        return bool(self._dirty)

    async def _compare_dirty(self) -> int:
        compared = 0
        while self._dirty:
            some = list(islice(self._dirty, AT_ONCE))
            self._dirty.difference_update(some)
            try:
                await self._sync(some)
            except BaseException:
                self._dirty.update(some)
                raise
            compared += len(some)
        return compared

    async def _sync(self, room_ids: list[str]) -> None:
        """Compares rooms with Redis and lets the rule decide (``merge``)."""
        views = [view for room_id in room_ids if (view := self._views.get(room_id)) is not None]
        for view in views:
            view.hold()
        try:
            snapshots = await self._policy.call(self._store.look, self.instance, room_ids)
            changes = [one for pair in zip(room_ids, snapshots, strict=True) for one in self._settle(*pair)]
        finally:
            for view in views:
                view.release()
        await self._restore(room_ids, snapshots)
        if changes:
            self._refused(await self._policy.call(self._store.write, self.instance, self.outbox.numbered(changes)))

    def _settle(self, room_id: str, snapshot: Snapshot) -> list[Change]:
        if snapshot.deleted:
            self._memory.forget(room_id)
            self._local.room_deleted(room_id)
        self._peers.era(snapshot.era)
        view = self._views.get(room_id)
        settled = settle(self.instance, self._local.local_members(room_id), snapshot.members, self._peers.dead)
        changes = [Change("drop", room_id, one.id, member=one, text=reason) for one, reason in settled.remove]
        changes += [Change("put", room_id, one.id, member=one) for one in settled.write]
        if view is None:
            return [*changes, Change("close", room_id, self.instance)]
        view.settle(snapshot, settled.elsewhere, self._peers.dead, complete=self._peers.complete)
        if view.call is not None and earlier(view.call, snapshot.call) != snapshot.call:
            changes.append(Change("call", room_id, call=view.call))
        if view.mode == SFU and snapshot.mode != SFU:
            changes.append(Change("mode", room_id, SFU, text="merged"))
        return changes

    async def _restore(self, room_ids: list[str], snapshots: Iterable[Snapshot]) -> None:
        """Rooms in use that Redis has lost, though nobody deleted them."""
        for room_id, snapshot in zip(room_ids, snapshots, strict=True):
            view = self._views.get(room_id)
            if view is not None and view.room is not None and snapshot.room is None and not snapshot.deleted:
                await self._rooms.restore(view.room)

    def _refused(self, results: Iterable[Change | None]) -> None:
        for change in results:
            if change is not None and (view := self._views.get(change.room_id)) is not None:
                view.apply(change)

    # -- writing

    async def write_forever(self) -> None:
        """Writes what waits; merges when Redis is back. Until cancelled."""
        failures = 0
        while True:
            if not self._wanted:
                self._work.clear()
                await self._work.wait()
                continue
            try:
                await (self._mend() if self._alone else self._write_some())
                failures = 0
            except AWAY:
                failures += 1
                await self._clock.sleep(_pause(failures))

    @property
    def _wanted(self) -> bool:
        if self._alone:
            return self._policy.breaker.state is CircuitState.CLOSED
        return bool(self.outbox)

    async def _write_some(self) -> None:
        rooms = self.outbox.syncs(AT_ONCE)
        if rooms:
            try:
                await self._sync(rooms)
            except AWAY:
                for room_id in rooms:
                    self._compare(room_id)
                raise
            return
        frames = self.outbox.batch()
        results = await self._policy.call(self._store.write, self.instance, frames)
        self.outbox.done()
        self._refused(results)

    # -- reading

    async def read_forever(self) -> None:
        """Reads the inbox, until cancelled."""
        failures = 0
        while True:
            try:
                entries = await hard_timeout(
                    self._store.read(self.instance, self._position), READ_SECONDS, name="inbox", clock=self._clock
                )
                failures = 0
            except AWAY:
                failures += 1
                self._kick.set()
                await self._clock.sleep(_pause(failures))
            else:
                for entry in entries:
                    self._position = entry.position
                    self._receive(entry)

    def _receive(self, entry: Entry) -> None:
        content = entry.content
        if content is None or not self._peers.is_new(entry):
            return
        for one in (content,) if isinstance(content, Change) else codec.unpack(content):
            if isinstance(one, Change) and one.kind == "end":
                self._has_ended(one.key)
            elif isinstance(one, Change) and one.kind == "gone":
                self._memory.forget(one.room_id)
                self._local.room_deleted(one.room_id)
            elif (view := self._views.get(one.room_id)) is not None:
                view.receive(entry.position, one)

    # -- the lease

    async def beat_forever(self) -> None:
        """Renews the lease and looks after the others', until cancelled."""
        while True:
            try:
                pulse = await self._policy.call(self._store.beat, self.instance, self._slot)
                if not self._alone:
                    self._look_after(pulse)
                    await self._reap(pulse)
                wait = self._beat
            except AWAY:
                wait = AGAIN_SECONDS if self._policy.breaker.state is CircuitState.CLOSED else self._beat
            self._begun.set()
            await self._rest(wait * RANDOM.uniform(0.9, 1.1))

    async def _rest(self, seconds: float) -> None:
        self._kick.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._kick.wait()
        except TimeoutError:
            return
        await self._clock.sleep(AGAIN_SECONDS)  # who is kicked looks early, but does not spin

    def _found(self, pulse: Pulse) -> None:
        self._peers.found(pulse)
        if pulse.before:
            self._has_ended(pulse.before)

    def _has_ended(self, instance: str) -> None:
        """Another process has its address. Its participants are on their way back, and lost only when its lease ends;
        but nobody can be reached there, and it carries no media any more."""
        self._peers.end(instance)
        for view in list(self._views.values()):
            if view.home == instance:
                view.set_home("")

    def _look_after(self, pulse: Pulse) -> None:
        self._found(pulse)
        for view in list(self._views.values()):
            for instance in {member.instance for member in view.members.values()} | {view.home}:
                if self._peers.dead(instance):
                    view.lost(instance)
        if not pulse.kept:
            for room_id in list(self._views):
                self._compare(room_id)
        else:
            self._compare_some()

    def _compare_some(self) -> None:
        """A part of the rooms with each beat, all in turn: whatever went wrong, it does not stay so."""
        for room_id in list(islice(self._views, AT_ONCE)):
            self._views[room_id] = self._views.pop(room_id)
            self._compare(room_id)

    async def _reap(self, pulse: Pulse) -> None:
        for instance in pulse.dead:
            while self._peers.dead(instance) and not await self._policy.call(self._store.reap, self.instance, instance):
                pass

    # -- stopping

    async def stop(self) -> None:
        """Says what is left to say, for a bounded time, and good-bye. The tasks have ended already."""
        if self._alone:
            return
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                while self.outbox:
                    await self._write_some()
                await self._policy.call(self._store.leave, self.instance, list(self._views))
        except (TimeoutError, *AWAY) as error:
            self._note("the others were not told that this instance stops", error=type(error).__name__)


def _pause(failures: int) -> float:
    """Seconds until the next attempt: doubled with each failure, bounded, and not in step with other instances."""
    return float(min(0.05 * 2.0 ** min(failures, 10), LONGEST_PAUSE) * RANDOM.uniform(0.5, 1.0))
