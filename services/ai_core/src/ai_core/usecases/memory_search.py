"""Searching memories by meaning, and by words where that is not possible (rows A1, A4 and A6).

A search uses one model's vectors, because two models' do not compare: those of the configured one when all memories of
the owner have them, else those of the local one, which are made at once. Whatever is missing, memories with all words
of the query are found.
"""

from collections.abc import Callable, Sequence

from ai_core.degradation import FULL_TEXT, LOCAL_EMBEDDING, VECTORS
from ai_core.model import PAGE_LIMIT, Found, Memory, Page, RequestRefused
from ai_core.ports import (
    EmbeddingBusy,
    EmbeddingModel,
    MemoryCopies,
    MemoryStore,
    ModelUnknown,
    ProviderBusy,
    ProviderFailed,
    Vectors,
    VectorsGone,
)
from ai_core.usecases.embeddings import ASK_LIMIT, Embeddings
from ai_core.usecases.words import holding
from resilience import MISSING, CircuitBreakerOpen, CircuitState, Degradation, Missing, RowPolicy, Rung, Served
from resilience.errors import POLICY_FAILURES

_UNEMBEDDED = (ProviderFailed, ProviderBusy, ModelUnknown, EmbeddingBusy, RequestRefused, *POLICY_FAILURES)


class MemorySearch:
    """``postgres``: row A1, ``vectors``: row A6. ``repair`` hears that vectors cannot be compared."""

    def __init__(
        self,
        store: MemoryStore,
        copies: MemoryCopies,
        embeddings: Embeddings,
        *,
        postgres: RowPolicy,
        vectors: RowPolicy,
        repair: Callable[[], None],
    ) -> None:
        self._store = store
        self._copies = copies
        self._embeddings = embeddings
        self._postgres = postgres
        self._vectors = vectors
        self._repair = repair

    async def find(self, owner: str, query: str, size: int) -> Served[Found]:
        """The memories that fit a query, best first. Raises what the policy of the database raises."""
        asked = await self._asked(owner, query)
        if asked.value is None:
            found = await self._by_words(owner, query, size)
        else:
            found = await self._by_meaning(owner, query, asked.value, size)
        return found.also(*asked.degradations)

    async def _asked(self, owner: str, query: str) -> Served[Vectors | None]:
        """The query's vector, of the model to be searched by; None without a model, or anything to compare with."""
        if self._postgres.breaker.state is CircuitState.OPEN:
            return Served(None)
        try:
            return await self._vector(owner, query)
        except _UNEMBEDDED:
            return Served(None, (self._instead(FULL_TEXT),))

    async def _vector(self, owner: str, query: str) -> Served[Vectors | None]:
        """Raises as ``Embeddings.made``, when no model can serve."""
        try:
            if await self._behind(owner):
                return await self._locally(query)
            return _optional(await self._embeddings.made([query]))
        except RequestRefused:
            return await self._locally(query)

    async def _locally(self, query: str) -> Served[Vectors | None]:
        """By the local model, if there is one. Raises as ``Embeddings.made``."""
        embeddings = self._embeddings
        try:
            asked = await embeddings.by(embeddings.local, [query], ASK_LIMIT)
        except (ProviderFailed, EmbeddingBusy):
            return _optional(await embeddings.made([query]))
        gone = embeddings.policy.breaker.state is not CircuitState.CLOSED
        return Served(asked, (self._instead(LOCAL_EMBEDDING),) if gone else ())

    def _instead(self, fallback: str) -> Degradation:
        """Row A4 is served by a fallback, which is no rung of its ladder."""
        self._embeddings.policy.note_fallback(fallback)
        return self._embeddings.policy.degradation(fallback)

    async def _behind(self, owner: str) -> bool:
        """Whether memories wait for the configured model's vectors; no matter when nobody can say."""
        best: EmbeddingModel = self._embeddings.primary
        if best is self._embeddings.local:
            return False
        try:
            return await self._postgres.call(lambda: self._store.behind(owner, best.name))
        except Exception:  # noqa: BLE001 - the search itself will say what is wrong with the database
            return False

    async def _by_meaning(self, owner: str, query: str, asked: Vectors, size: int) -> Served[Found]:
        async def nearest() -> Served[Found]:
            return await self._postgres.serve(
                lambda: self._nearest(owner, query, asked, size), *self._copied(owner, query, size)
            )

        async def by_words(failure: BaseException) -> Served[Found] | Missing:
            if isinstance(failure, VectorsGone):
                self._repair()
            return await self._by_words(owner, query, size) if _is_vectors(failure) else MISSING

        return await self._vectors.serve(nearest, Rung(FULL_TEXT, by_words))

    async def _nearest(self, owner: str, query: str, asked: Vectors, size: int) -> Found:
        return Found(await self._store.nearest(owner, query, asked, size), "semantic")

    async def _by_words(self, owner: str, query: str, size: int) -> Served[Found]:
        async def said() -> Found:
            return Found(await self._store.search(owner, query, size), "full-text")

        return await self._postgres.serve(said, *self._copied(owner, query, size))

    def _copied(self, owner: str, query: str, size: int) -> Sequence[Rung[Found]]:
        """The steps that search the copy of the newest memories, by words, while the database is away."""

        def step(rung: Rung[Page[Memory]]) -> Rung[Found]:
            async def search(failure: BaseException) -> Served[Found] | Missing:
                page = await rung.serve(failure)
                if isinstance(page, Missing):
                    return page
                served = page if isinstance(page, Served) else Served(page)
                return served.map(lambda found: Found(holding(found.items, query)[:size], "full-text"))

            return Rung(rung.name, search)

        return [step(rung) for rung in self._copies.rungs(owner, PAGE_LIMIT, None)]


def _optional(served: Served[Vectors]) -> Served[Vectors | None]:
    return Served(served.value, served.degradations)


def _is_vectors(failure: BaseException) -> bool:
    """Whether row A6 failed, and not the database."""
    return isinstance(failure, VectorsGone) or (isinstance(failure, CircuitBreakerOpen) and failure.name == VECTORS.id)
