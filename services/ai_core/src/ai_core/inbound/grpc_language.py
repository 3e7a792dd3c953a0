"""AI Core over gRPC: ``auralink.ai.v1.MemoryService`` and ``LanguageService``."""

# ruff: noqa: N802, ARG002 - names and parameters of the methods are the protocol's

from ai_core.inbound.grpc import Context, provenance, queued, timestamp
from ai_core.inbound.outcome import Outcome
from ai_core.model import Memory
from ai_core.usecases.language import Language
from ai_core.usecases.memories import Memories
from ai_core.usecases.speech import Speeches
from auralink.ai.v1 import ai_pb2, ai_pb2_grpc

_EMBEDDING = {"pending": ai_pb2.EMBEDDING_STATUS_PENDING, "ready": ai_pb2.EMBEDDING_STATUS_READY}


class MemoryService(ai_pb2_grpc.MemoryServiceServicer):
    """Each method acts for the user of the bearer token."""

    def __init__(self, memories: Memories, outcome: Outcome) -> None:
        self._memories = memories
        self._outcome = outcome

    async def CreateMemory(self, request: ai_pb2.CreateMemoryRequest, context: Context) -> ai_pb2.CreateMemoryResponse:
        """A new memory."""
        user, key = self._outcome.caller(), request.idempotency_key
        made = await self._outcome.of(self._memories.create(user, request.text, request.tags, key, request.id))
        return ai_pb2.CreateMemoryResponse(memory=_message(made.value), queued=queued(made))

    async def ListMemories(self, request: ai_pb2.ListMemoriesRequest, context: Context) -> ai_pb2.ListMemoriesResponse:
        """A page of memories, newest first."""
        user = self._outcome.caller()
        found = await self._outcome.served(self._memories.page(user, request.page_size, request.cursor))
        items, cursor = [_message(memory) for memory in found.value.items], found.value.next_cursor
        return ai_pb2.ListMemoriesResponse(items=items, next_cursor=cursor, provenance=provenance(found))

    async def SearchMemories(
        self, request: ai_pb2.SearchMemoriesRequest, context: Context
    ) -> ai_pb2.SearchMemoriesResponse:
        """The memories that fit a query, best first."""
        user = self._outcome.caller()
        found = await self._outcome.of(self._memories.search(user, request.query, request.limit))
        kind = ai_pb2.SearchMemoriesResponse.Match
        matches = [kind(memory=_message(match.memory), score=match.score) for match in found.matches]
        return ai_pb2.SearchMemoriesResponse(matches=matches, search=found.search)

    async def DeleteMemory(self, request: ai_pb2.DeleteMemoryRequest, context: Context) -> ai_pb2.DeleteMemoryResponse:
        """Forgets a memory."""
        made = await self._outcome.of(self._memories.delete(self._outcome.caller(), request.id))
        return ai_pb2.DeleteMemoryResponse(queued=queued(made))

    async def AbandonMemory(
        self, request: ai_pb2.AbandonMemoryRequest, context: Context
    ) -> ai_pb2.AbandonMemoryResponse:
        """Gives up a creation that nobody should make any more."""
        await self._outcome.of(self._memories.abandon(self._outcome.caller(), request.idempotency_key))
        return ai_pb2.AbandonMemoryResponse()


class LanguageService(ai_pb2_grpc.LanguageServiceServicer):
    """Each method needs a user's token."""

    def __init__(self, language: Language, speeches: Speeches, outcome: Outcome) -> None:
        self._language = language
        self._speeches = speeches
        self._outcome = outcome

    async def Translate(self, request: ai_pb2.TranslateRequest, context: Context) -> ai_pb2.TranslateResponse:
        """A text in another language, or as it came."""
        user = self._outcome.caller()
        asked = self._language.translate(user, request.text, request.target_language, request.source_language)
        made = await self._outcome.of(asked)
        return ai_pb2.TranslateResponse(
            text=made.text,
            translated=made.translated,
            provider=made.provider,
            model=made.model,
            simulated=made.simulated,
        )

    async def Speak(self, request: ai_pb2.SpeakRequest, context: Context) -> ai_pb2.SpeakResponse:
        """A text spoken, or the text alone."""
        self._outcome.caller()
        made = await self._outcome.of(self._speeches.speak(request.text, request.voice))
        return ai_pb2.SpeakResponse(
            text=made.text,
            audio=made.audio,
            content_type=made.content_type,
            provider=made.provider,
            model=made.model,
            simulated=made.simulated,
        )


def _message(memory: Memory) -> ai_pb2.Memory:
    return ai_pb2.Memory(
        id=memory.id,
        text=memory.text,
        tags=memory.tags,
        embedding=_EMBEDDING[memory.embedding],
        embedding_model=memory.embedding_model,
        created_at=timestamp(memory.created_at),
    )
