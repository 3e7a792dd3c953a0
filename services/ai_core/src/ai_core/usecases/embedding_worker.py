"""Embeds, in the background, what waits for it: the oldest first, in bounded batches, whichever instance has time.

A batch is leased, not locked: who dies with it gives it back by time. A text that a provider refuses is set apart and
tried again later and later, then no more; it holds up no other. While a provider is gone its work waits, uncounted.
"""

import asyncio
from collections.abc import Callable, Sequence
from math import inf
from typing import Final

from ai_core.model import RequestRefused, TooLong
from ai_core.ports import (
    Due,
    EmbeddingBusy,
    EmbeddingModel,
    EmbeddingWork,
    ModelUnknown,
    ProviderBusy,
    ProviderFailed,
    StoreUnavailable,
)
from ai_core.usecases.embeddings import BATCH_LIMIT, Embeddings
from resilience import CircuitState, Clock, RowPolicy
from resilience.errors import POLICY_FAILURES

BATCH: Final = 16
"""Memories that one call embeds."""
LEASE: Final = 15.0
"""Seconds until a batch of an instance that died is somebody else's. One that takes longer is embedded twice, alike."""
IDLE: Final = 1.0
"""Seconds between looks when nobody has said that there is something."""
PAGE: Final = 500
"""Memories that are looked through at once for missing vectors."""
LOOK_AGAIN: Final = 3_600.0
"""Seconds between looks through all memories; the first is at the start."""
BEGINNING: Final = 4_000
"""Characters of a text that every model takes, in any language."""
ATTEMPTS: Final = 8
"""Refusals of a text until it is left alone for good."""

_AWAY = (StoreUnavailable, *POLICY_FAILURES)


class EmbeddingWorker:
    """One per process. ``postgres``: row A1. ``refused(model, attempts)`` hears of a text that a provider refused."""

    def __init__(
        self,
        work: EmbeddingWork,
        embeddings: Embeddings,
        postgres: RowPolicy,
        clock: Clock,
        refused: Callable[[str, int], None] = lambda _model, _attempts: None,
    ) -> None:
        self._work = work
        self._embeddings = embeddings
        self._postgres = postgres
        self._clock = clock
        self._refused = refused
        self._wanted = asyncio.Event()
        self._looked: dict[str, float] = {}
        self._held: dict[str, set[str]] = {}  # what is claimed here, by model

    def kick(self) -> None:
        """There is something to do: a new memory, or a provider that is back."""
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wanted.clear()
            if not await self.once():
                await self._pause()

    async def once(self) -> bool:
        """One batch of each model; whether there was any."""
        done = False
        for model in self._embeddings.models:
            try:
                await self._look(model)
                done = await self._batch(model) or done
            except _AWAY:
                continue
        return done

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(IDLE):
                await self._wanted.wait()
        except TimeoutError:
            return

    async def _look(self, model: EmbeddingModel) -> None:
        """Puts in line what is not: memories of another version, of another configuration, whatever was lost."""
        now = self._clock.monotonic()
        if now - self._looked.get(model.name, -inf) < LOOK_AGAIN:
            return
        if not self._looked and await self._postgres.call(self._work.any):
            await self._embeddings.local.load()  # somebody will search, or there is work
        after = ""
        while True:
            start = after
            after = await self._postgres.call(lambda start=start: self._work.add_missing(model.name, start, PAGE))
            if not after:
                break
        self._looked[model.name] = now

    async def _batch(self, model: EmbeddingModel) -> bool:
        if not self._may(model):
            return False
        held = self._held.setdefault(model.name, set())
        if held:  # since the database went away: it need not wait for the end of its lease
            await self._later(model, list(held), 0.0, counted=False)
        batch = await self._postgres.call(lambda: self._work.claim(model.name, BATCH, LEASE))
        held.update(due.memory_id for due in batch)
        if batch:
            await self._embed(model, batch)
        return bool(batch)

    def _may(self, model: EmbeddingModel) -> bool:
        """Whether asking makes sense: the probe, not this, finds out that a provider is back."""
        return model is self._embeddings.local or self._embeddings.policy.breaker.state is CircuitState.CLOSED

    async def _embed(self, model: EmbeddingModel, batch: Sequence[Due]) -> None:
        try:
            vectors = await self._embeddings.by(model, [due.text for due in batch], BATCH_LIMIT)
        except RequestRefused as refused:
            await self._apart(model, batch, too_long=isinstance(refused, TooLong))
        except (ProviderFailed, ProviderBusy, ModelUnknown, EmbeddingBusy, *POLICY_FAILURES) as error:
            await self._later(model, _ids(batch), _wait(error), counted=False)
        else:
            await self._postgres.call(lambda: self._work.keep(_ids(batch), vectors))
            self._held[model.name].difference_update(_ids(batch))

    async def _apart(self, model: EmbeddingModel, batch: Sequence[Due], *, too_long: bool) -> None:
        """One of them is refused: each on its own; of one that is too long, its beginning."""
        if len(batch) > 1:
            for due in batch:
                await self._embed(model, [due])
        elif too_long and len(batch[0].text) > BEGINNING:
            await self._embed(model, [batch[0]._replace(text=batch[0].text[:BEGINNING])])
        else:
            await self._give_up(model, batch[0])

    async def _give_up(self, model: EmbeddingModel, due: Due) -> None:
        """For longer each time, and in the end for good."""
        self._refused(model.name, due.attempts)
        wait = None if due.attempts >= ATTEMPTS else 2.0**due.attempts
        await self._later(model, [due.memory_id], wait, counted=True)

    async def _later(self, model: EmbeddingModel, ids: Sequence[str], wait: float | None, *, counted: bool) -> None:
        await self._postgres.call(lambda: self._work.postpone(ids, model.name, wait, counted=counted))
        self._held[model.name].difference_update(ids)


def _ids(batch: Sequence[Due]) -> list[str]:
    return [due.memory_id for due in batch]


def _wait(error: Exception) -> float:
    """Seconds until a provider that failed is asked again, if its circuit allows it then."""
    if isinstance(error, ProviderBusy):
        return min(max(error.retry_after or 1.0, 1.0), 600.0)
    return 30.0 if isinstance(error, ModelUnknown) else 1.0
