"""Ends calls in the history that nobody has ended: whoever should have died first (row W3, webrtc.postgres).

A call of which nothing was reported for a while is over when nobody is in its room, or when a later call of that room
has begun. It then ended at the last moment that anything is known of.
"""

import contextlib
from collections.abc import Awaitable, Callable, Sequence

from resilience import CircuitState, Clock, RowPolicy
from webrtc.model import Call, Member, Room, RoomUnknown
from webrtc.ports import CallLog, History

SWEEP_SECONDS = 60.0
QUIET_SECONDS = 120.0
"""Longer than anybody who was cut off may come back, and than reports are on their way while all is well."""

Members = Callable[[str], Awaitable[Sequence[Member]]]


class Forgotten:
    """``members`` are those of a room, on all instances; ``knows_all`` is false while other instances are out of
    sight."""

    def __init__(
        self,
        history: History,
        policy: RowPolicy,
        journal: CallLog,
        members: Members,
        knows_all: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._history = history
        self._policy = policy
        self._journal = journal
        self._members = members
        self._knows_all = knows_all
        self._clock = clock

    async def run(self) -> None:
        """Sweeps until cancelled."""
        while True:
            await self._clock.sleep(SWEEP_SECONDS)
            if self._policy.breaker.state is CircuitState.CLOSED:
                with contextlib.suppress(Exception):  # the next sweep is soon
                    await self.sweep()

    async def sweep(self) -> None:
        """Ends what is over."""
        for quiet in await self._policy.call(self._history.quiet, QUIET_SECONDS):
            if quiet.followed or await self._is_empty(quiet.room_id):
                room = Room(quiet.room_id, quiet.room_name, 0, quiet.owner_id, 0)
                self._journal.ended(Call(quiet.id, quiet.started_at), room, quiet.last_at)

    async def _is_empty(self, room_id: str) -> bool:
        """Certain: not a guess of an instance that is alone."""
        if not self._knows_all():
            return False
        try:
            found = await self._members(room_id)
        except RoomUnknown:
            found = ()
        return not found and self._knows_all()
