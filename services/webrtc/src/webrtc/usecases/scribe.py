"""Writes reports into the history behind whoever makes them (row W3, webrtc.postgres).

A report goes to PostgreSQL, and while that is away into the queue in Redis. What neither takes waits here, in the
memory of this instance, up to ``LIMIT`` reports, until one of them is back; that alone is lost when the instance ends.
A report carries its id from the start, and the history takes it any number of times: one whose answer was lost is
simply brought again.
"""

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass

from resilience import CallTimeout, Clock, DurableWriter, Operation, RowPolicy, WriteRefused
from resilience.deadline import hard_timeout
from webrtc.degradation import MEMORY_BUFFER
from webrtc.ports import History, HistoryUnavailable, Note

LIMIT = 10_000
AGAIN_SECONDS = 0.5
"""Before a report that nobody has taken is brought again."""
TRIES = 3
"""For a report that is refused by what works: the fault is in the report."""


@dataclass(slots=True)
class ScribeStats:
    """``depth`` of the buffer, and reports lost since the start: it was full, or they were refused."""

    depth: int = 0
    overflowed: int = 0
    refused: int = 0


class Scribe:
    """``keep`` reports; ``run`` it in the background, and ``finish`` at the end."""

    def __init__(self, history: History, policy: RowPolicy, writer: DurableWriter, clock: Clock, note: Note) -> None:
        self._history = history
        self._policy = policy
        self._writer = writer
        self._clock = clock
        self._note = note
        self._waiting: deque[Operation] = deque()
        self._filled = asyncio.Event()
        self._overflowed = self._refused = 0
        self._stuck = False

    def keep(self, report: Operation) -> None:
        """Takes a report; never waits. When the buffer is full the oldest one is lost."""
        if len(self._waiting) >= LIMIT:
            self._waiting.popleft()
            if not self._overflowed:
                self._note("call history is losing reports: neither PostgreSQL nor Redis takes them", limit=LIMIT)
            self._overflowed += 1
        self._waiting.append(report)
        self._filled.set()

    def stats(self) -> ScribeStats:
        """For the health page."""
        return ScribeStats(len(self._waiting), self._overflowed, self._refused)

    async def run(self) -> None:
        """Writes what there is until cancelled."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            await self.write_all()

    async def finish(self, seconds: float) -> None:
        """Writes what can be written in a short time; says what is lost."""
        with contextlib.suppress(CallTimeout):
            await hard_timeout(self.write_all(), seconds, name="call history")
        if self._waiting:
            self._note("reports about calls are lost: the service stops", reports=len(self._waiting))

    async def write_all(self) -> None:
        """In order; returns when nothing waits any more."""
        tries = 0
        while self._waiting:
            report = self._waiting[0]
            taken = await self._write(report)
            tries = 0 if taken is None else tries + 1
            if taken or tries >= TRIES:
                self._done(report, lost=not taken)
                tries = 0
            else:
                await self._clock.sleep(AGAIN_SECONDS)

    async def _write(self, report: Operation) -> bool | None:
        """True: it is safe; False: it was refused; None: there is nobody to take it."""
        try:
            await self._writer.write(report, lambda _: self._history.note(report.payload), settle=False)
        except (WriteRefused, HistoryUnavailable):
            self._policy.note_fallback(MEMORY_BUFFER)
            self._say(stuck=True)
            return None
        except Exception as error:  # noqa: BLE001 - a report that cannot be written must not stop those behind it
            self._note("a report about a call was refused", error=type(error).__name__, report=report.id)
            return False
        self._say(stuck=False)
        return True

    def _done(self, report: Operation, *, lost: bool) -> None:
        if self._waiting and self._waiting[0] is report:  # else it has just been lost to an overflow
            self._waiting.popleft()
        self._refused += lost

    def _say(self, *, stuck: bool) -> None:
        """One line per outage."""
        if stuck != self._stuck:
            self._stuck = stuck
            self._note(
                "call history: neither PostgreSQL nor Redis takes reports, they wait in memory"
                if stuck
                else "call history: reports are written again",
                waiting=len(self._waiting),
            )
