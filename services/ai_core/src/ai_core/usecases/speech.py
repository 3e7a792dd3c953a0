"""Speech (row A5, ai_core.speech): the providers in their order, then the text alone.

It never fails because a provider does, and what a provider refuses is not spoken but still the caller's text.
"""

from collections.abc import Iterator, Sequence

from ai_core.degradation import SPEECH, TEXT_ONLY
from ai_core.model import Speech, checked
from ai_core.ports import ProviderBusy, SpeechProvider
from ai_core.usecases.failover import Move, move_after
from ai_core.usecases.rest import SHORTEST_REST, Rest
from resilience import SYSTEM_CLOCK, Clock, Degradation, RowPolicy, Served, current_deadline, deadline_scope

ANSWER_SECONDS = 0.2
"""Kept for the way back to the caller."""
TRIAL = "Hi"
LEAST_SECONDS = 0.02
"""An attempt with less time than that is not begun."""


class GuardedSpeech:
    """A provider, asked under its own circuit, and left alone while it wants that. ``fallback``: what its answers are
    called when another should have spoken."""

    def __init__(self, provider: SpeechProvider, policy: RowPolicy, fallback: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self.provider = provider
        self.policy = policy
        self.fallback = fallback
        self._clock = clock
        self._rest = Rest(clock)

    async def speak(self, text: str, voice: str, limit: float) -> Speech:
        """Within ``limit`` seconds. Raises what the port and the policy raise."""
        if remaining := self._rest.remaining:
            raise ProviderBusy(self.provider.name, remaining)
        try:
            with deadline_scope(limit, clock=self._clock):
                return await self.policy.call(self.provider.speak, text, voice)
        except ProviderBusy as busy:
            self._rest.begin(SHORTEST_REST if busy.retry_after is None else busy.retry_after)
            raise

    async def trial(self) -> None:
        """A few letters, to learn whether it speaks again: that its list answers proves too little."""
        await self.provider.speak(TRIAL, "")

    @property
    def usable(self) -> bool:
        """Whether it makes sense to ask it now."""
        return not self._rest.remaining and not self.policy.breaker.retry_after()


class Speeches:
    """``providers`` in the order in which they are asked; there may be none."""

    def __init__(self, providers: Sequence[GuardedSpeech], clock: Clock = SYSTEM_CLOCK) -> None:
        self._providers = tuple(providers)
        self._clock = clock

    async def speak(self, text: str, voice: str = "") -> Served[Speech]:
        """The text spoken; the text alone, and marked, when nobody can or nobody wants to. Raises Invalid."""
        checked({"text": text, "voice": voice})
        for one, limit in self._order(len(text)):
            try:
                spoken = await one.speak(text, voice, limit)
            except Exception as error:  # noqa: BLE001 - whatever it is, the text can be served
                if move_after(error) is Move.BACK:
                    break
                continue
            return self._served(spoken, "" if one is self._providers[0] else one.fallback)
        return self._served(Speech(text), TEXT_ONLY)

    def _order(self, characters: int) -> Iterator[tuple[GuardedSpeech, float]]:
        """Those who take so long a text, and their share of the time that is left, worked out when it is their turn."""
        for at, one in enumerate(self._providers):
            if characters > one.provider.longest:
                continue
            behind = sum(1 for other in self._providers[at + 1 :] if other.usable)
            limit = min(one.policy.timeout, self._left() / (behind + 1))
            if limit >= LEAST_SECONDS:
                yield one, limit

    def _left(self) -> float:
        deadline = current_deadline()
        return float("inf") if deadline is None else deadline.remaining(self._clock) - ANSWER_SECONDS

    def _served(self, speech: Speech, fallback: str) -> Served[Speech]:
        if not fallback:
            return Served(speech)
        if not self._providers:
            return Served(speech, (Degradation(SPEECH.id, fallback, "closed"),))
        first = self._providers[0].policy
        first.note_fallback(fallback)
        return Served(speech, (first.degradation(fallback),))
