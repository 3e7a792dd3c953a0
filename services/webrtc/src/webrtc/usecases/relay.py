"""Whether TURN relays at this moment (row W2, webrtc.turn), found out before anybody is sent there.

A fallback starts after a failed call: one failed allocation, which itself has been retransmitted, is enough for STUN
alone to be given; the circuit opens when two more have failed, at once after each other.
"""

import contextlib
from collections.abc import Callable

from resilience import CircuitState, Clock, Degradation, RowPolicy
from webrtc.degradation import STUN_ONLY
from webrtc.ports import Relays

PROBE_SECONDS = 1.2
"""Between two probes while TURN works. With the row's ``call_timeout`` less than the 3 s within which its loss must be
known."""
AGAIN_SECONDS = 0.2
"""After a probe that has failed, while the circuit is still closed."""


class Relay:
    """``urls`` is what may be given to participants now: those of the configured URLs that the last probe found
    relaying, and none while the row is in its fallback."""

    def __init__(self, relays: Relays, policy: RowPolicy, configured: tuple[str, ...], clock: Clock) -> None:
        self._relays = relays
        self._policy = policy
        self._clock = clock
        self._working = configured
        """Taken to be well until the first probe, a moment after the start."""
        self._failed = False
        self.why = ""
        """How the latest probe that failed did."""
        self._told = configured
        self._listeners: list[Callable[[bool], None]] = []
        policy.breaker.subscribe(lambda _: self._tell())

    @property
    def urls(self) -> tuple[str, ...]:
        """See the class."""
        return () if self.away else self._working

    @property
    def away(self) -> bool:
        """Whether the row is in its fallback."""
        return self._failed or self._policy.breaker.state is not CircuitState.CLOSED

    def fallback(self) -> Degradation:
        """The mark of an answer that is made without TURN; counts it."""
        self._policy.note_fallback(STUN_ONLY)
        return self._policy.degradation(STUN_ONLY)

    def on_change(self, listener: Callable[[bool], None]) -> None:
        """Call ``listener(back)`` whenever other URLs may be given than before; ``back``: TURN has come back. It must
        neither wait nor raise."""
        self._listeners.append(listener)

    async def probe(self) -> None:
        """Allocates on each server. Raises RelayUnavailable when none relays."""
        try:
            self._working = await self._relays.relaying()
            self._failed = False
        except BaseException as error:
            self._failed = True
            self.why = str(error) or type(error).__name__
            raise
        finally:
            self._tell()

    async def watch(self) -> None:
        """Probes while the circuit is closed, until cancelled; while it is not, the row's prober does."""
        while True:
            if self._policy.breaker.state is CircuitState.CLOSED:
                with contextlib.suppress(Exception):  # the circuit has taken note
                    await self._policy.call(self.probe)
            await self._clock.sleep(AGAIN_SECONDS if self._failed else PROBE_SECONDS)

    def _tell(self) -> None:
        before, self._told = self._told, self.urls
        if before == self._told:
            return
        if self.away:
            self._policy.note_fallback(STUN_ONLY)
        for listener in self._listeners:
            listener(not before)
