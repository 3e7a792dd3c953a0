"""Rows A4 and A6, and everything about memories: the models that embed, the worker, the vector index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ai_core.degradation import EMBEDDINGS, VECTORS, classify_provider, classify_vectors
from ai_core.outbound import local_embedding, openai_embedding
from ai_core.outbound.local_embedding import LocalEmbedding
from ai_core.outbound.memories import PostgresMemories, appliers
from ai_core.outbound.memory_copies import StoredMemoryCopies
from ai_core.outbound.openai_embedding import OpenAIEmbeddings
from ai_core.outbound.vector_schema import VectorKeeper, VectorSchema
from ai_core.outbound.vectors import PostgresEmbeddingWork, Space
from ai_core.ports import EmbeddingModel
from ai_core.settings import LOCAL_EMBEDDING_MODEL, Settings
from ai_core.usecases.embedding_worker import EmbeddingWorker
from ai_core.usecases.embeddings import Embeddings
from ai_core.usecases.memories import Memories
from ai_core.usecases.memory_writes import CREATE, DELETE
from resilience import Result, RowPolicy
from service_kit import logs
from service_kit.runtime import ServiceRuntime

if TYPE_CHECKING:
    from ai_core.wiring.postgres import PostgresPart
    from ai_core.wiring.redis import RedisPart

PROVIDER = "openai"
CONNECTIONS = 20

log = logs.get_logger("memories")


def spaces_of(settings: Settings) -> list[Space]:
    """The models of which every memory gets a vector: the local one, and the configured one."""
    local = Space(local_embedding.NAME, local_embedding.DIMENSIONS)
    if settings.embedding_model == LOCAL_EMBEDDING_MODEL:
        return [local]
    name, size = settings.embedding_model.partition(":")[2], settings.ai_embedding_dimensions
    return [local, Space(openai_embedding.space_name(PROVIDER, name, size), openai_embedding.size_of(name, size))]


class MemoriesPart:
    """Everything about memories. Make it on the loop that will serve."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings, postgres: PostgresPart, redis: RedisPart) -> None:
        clock = runtime.clock
        spaces = spaces_of(settings)
        self.local = LocalEmbedding(clock=clock)
        self.embeddings = self._embeddings(runtime, settings)
        work = PostgresEmbeddingWork(postgres.engine, self.embeddings.primary.name)
        self.worker = EmbeddingWorker(work, self.embeddings, postgres.policy, clock, refused=_refused)
        self.vectors = self._vectors(runtime, settings, postgres, spaces)
        self._copies = StoredMemoryCopies(redis.copies, clock)
        self.memories = Memories(
            PostgresMemories(postgres.engine, spaces),
            self._copies,
            postgres.writes,
            self.embeddings,
            self.worker,
            postgres=postgres.policy,
            vectors=self.vectors,
            clock=clock,
            repair=lambda: self._keeper.kick(),
        )
        postgres.appliers.update(appliers([space.model for space in spaces]))
        postgres.on_applied.append(self._applied)
        runtime.background("local embedding model", self.local.watch)
        runtime.background("embedding worker", self.worker.run)
        runtime.on_close(self.local.close, "local embedding model")

    def _embeddings(self, runtime: ServiceRuntime, settings: Settings) -> Embeddings:
        base = settings.ai_embedding_base_url or settings.openai_base_url
        key = settings.openai_api_key.get_secret_value()
        provider = OpenAIEmbeddings(PROVIDER, base, key, connections=CONNECTIONS, now=runtime.clock.time)
        runtime.on_close(provider.close, "embedding provider")
        chosen = settings.embedding_model
        asked = openai_embedding.DEFAULT if chosen == LOCAL_EMBEDDING_MODEL else chosen.partition(":")[2]
        remote = provider.named(asked, settings.ai_embedding_dimensions)
        primary: EmbeddingModel = self.local if chosen == LOCAL_EMBEDDING_MODEL else remote
        policy = runtime.policy(
            EMBEDDINGS,
            classify=classify_provider,
            probe=remote.ping,
            bulkhead_limit=CONNECTIONS,
            on_closed=lambda: self.worker.kick(),
        )
        return Embeddings(primary, self.local, policy, provider.named)

    def _vectors(
        self, runtime: ServiceRuntime, settings: Settings, postgres: PostgresPart, spaces: Sequence[Space]
    ) -> RowPolicy:
        schema = VectorSchema(postgres.engine, settings.database_url or "", spaces)
        policy = runtime.policy(
            VECTORS, classify=classify_vectors, probe=schema.ping, on_closed=lambda: self._keeper.kick()
        )
        self._keeper = VectorKeeper(schema, policy)
        runtime.background("vector index", self._keeper.run)
        return policy

    async def _applied(self, results: Sequence[Result]) -> None:
        """Queued writes were applied: their copies are brought up to date, and the new ones embedded."""
        for result in results:
            operation = result.operation
            if operation.kind == CREATE and result.value is not None:
                await self._copies.change(operation.owner, [result.value], ())
                self.worker.kick()
            elif operation.kind == DELETE:
                await self._copies.change(operation.owner, (), [operation.payload["id"]])


def _refused(model: str, attempts: int) -> None:
    log.warning("a memory was not embedded: its text was refused", model=model, attempts=attempts)
