"""AI Core over HTTP: ``/api/v1/memories``, ``/api/v1/translate`` and ``/api/v1/speech``."""

import base64
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from ai_core.inbound.http import Cursor, IdempotencyKey, PageSize, Prefer, Provenance, write_answer, written
from ai_core.inbound.outcome import Outcome
from ai_core.model import (
    DEFAULT_PAGE,
    LANGUAGE_LIMIT,
    LANGUAGE_PATTERN,
    QUERY_LIMIT,
    TAG_LIMIT,
    TAGS_PER_MEMORY,
    TEXT_LIMIT,
    VISIBLE_PATTERN,
    VOICE_LIMIT,
    VOICE_PATTERN,
    Memory,
)
from ai_core.usecases.language import Language
from ai_core.usecases.memories import Memories
from ai_core.usecases.speech import Speeches
from service_kit.context import allow, attend
from service_kit.http import problem_responses, served_json, stamp

Text = Annotated[str, Field(min_length=1, max_length=TEXT_LIMIT, pattern=f"^{VISIBLE_PATTERN}$")]
Tag = Annotated[str, Field(min_length=1, max_length=TAG_LIMIT, pattern=f"^{VISIBLE_PATTERN}$")]
Tags = Annotated[list[Tag], Field(max_length=TAGS_PER_MEMORY)]
Words = Annotated[str, Query(alias="q", min_length=1, max_length=QUERY_LIMIT, pattern=f"^{VISIBLE_PATTERN}$")]
LanguageTag = Annotated[str, Field(min_length=2, max_length=LANGUAGE_LIMIT, pattern=f"^{LANGUAGE_PATTERN}$")]
Voice = Annotated[str, Field(max_length=VOICE_LIMIT, pattern=f"^({VOICE_PATTERN})?$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewMemory(_Body):
    """A text to be remembered."""

    text: Text
    tags: Tags = []


class MemoryFields(BaseModel):
    """A memory as its owner sees it; the model is the best one by whose vector it is found."""

    id: str
    text: str
    tags: list[str]
    embedding: Literal["pending", "ready"]
    embedding_model: str | None
    created_at: datetime


class MemoryView(MemoryFields, Provenance):
    """One memory."""


class MemoryList(Provenance):
    """A page of memories, newest first."""

    items: list[MemoryFields]
    next_cursor: str | None


class MatchView(MemoryFields):
    """A memory that was found. The score is from 0 to 1, comparable within one answer: the cosine of the meanings; for
    one with all words of the query it is 0.5 or more."""

    score: float


class SearchResult(Provenance):
    """What was found, best first, and how it was searched."""

    items: list[MatchView]
    search: Literal["semantic", "full-text"]


class ToTranslate(_Body):
    """A text, and the language to translate it into."""

    text: Text
    target_language: LanguageTag
    source_language: LanguageTag | None = None


class TranslationView(BaseModel):
    """The text in the target language, or as it came when ``translated`` is false."""

    text: str
    translated: bool
    provider: str | None
    model: str | None
    simulated: bool


class ToSpeak(_Body):
    """A text to be spoken."""

    text: Text
    voice: Voice = ""


class SpeechView(BaseModel):
    """The audio in base64, or null when there is only the text."""

    text: str
    audio: str | None
    content_type: str | None
    provider: str | None
    model: str | None
    simulated: bool


def create_router(
    memories: Memories, language: Language, speeches: Speeches, outcome: Outcome, *, chat_limit: float | None = None
) -> APIRouter:
    """The routes; each acts for the user of the bearer token. ``chat_limit``: seconds for what asks a provider, if not
    the usual ones."""
    router = APIRouter(
        prefix="/api/v1",
        tags=["language"],
        dependencies=[Depends(HTTPBearer(auto_error=False))],
        responses=problem_responses(401, 429, 503),
    )
    caller = Annotated[str, Depends(outcome.caller)]

    @router.post("/memories", status_code=201, response_model=MemoryView, responses=written)
    async def create(body: NewMemory, user: caller, key: IdempotencyKey = "", prefer: Prefer = "") -> Response:
        """Keep a memory. A repeated Idempotency-Key gives the memory made the first time."""
        made = memories.create(user, body.text, body.tags, key)
        return write_answer(await outcome.served(made), 201, prefer, memory_body)

    @router.get("/memories", response_model=MemoryList)
    async def page(user: caller, limit: PageSize = DEFAULT_PAGE, cursor: Cursor = "") -> Response:
        """List one's memories; from a copy while the database is away."""
        found = await outcome.served(memories.page(user, limit, cursor))
        items = [memory_body(memory) for memory in found.value.items]
        return served_json(found, {"items": items, "next_cursor": found.value.next_cursor or None})

    @router.get("/memories/search", response_model=SearchResult)
    async def search(user: caller, query: Words, limit: PageSize = DEFAULT_PAGE) -> Response:
        """Find memories by what they mean, or by their words while that is not possible."""
        found = await outcome.served(memories.search(user, query, limit))
        items = [{**memory_body(match.memory), "score": match.score} for match in found.value.matches]
        return served_json(found, {"items": items, "search": found.value.search})

    @router.delete("/memories/{memory_id:uuid}", status_code=204, responses={**written, **problem_responses(404)})
    async def delete(memory_id: UUID, user: caller, prefer: Prefer = "") -> Response:
        """Forget a memory."""
        return write_answer(await outcome.served(memories.delete(user, str(memory_id))), 204, prefer)

    @router.post("/translate")
    async def translate(body: ToTranslate, user: caller) -> TranslationView:
        """Translate a text."""
        attend()
        if chat_limit is not None:
            allow(chat_limit)
        made = await outcome.of(language.translate(user, body.text, body.target_language, body.source_language or ""))
        return TranslationView(
            text=made.text,
            translated=made.translated,
            provider=made.provider or None,
            model=made.model or None,
            simulated=made.simulated,
        )

    @router.post("/speech", dependencies=[Depends(outcome.caller)])
    async def speak(body: ToSpeak) -> SpeechView:
        """Speak a text; while nobody can, it comes back without audio, and is marked."""
        attend()
        if chat_limit is not None:
            allow(chat_limit)
        made = await outcome.of(speeches.speak(body.text, body.voice))
        audio = None if made.audio is None else base64.b64encode(made.audio).decode()
        return SpeechView(
            text=made.text,
            audio=audio,
            content_type=made.content_type or None,
            provider=made.provider or None,
            model=made.model or None,
            simulated=made.simulated,
        )

    return router


def memory_body(memory: Memory) -> dict[str, Any]:
    """The public form of a memory."""
    return {
        "id": memory.id,
        "text": memory.text,
        "tags": list(memory.tags),
        "embedding": memory.embedding,
        "embedding_model": memory.embedding_model or None,
        "created_at": stamp(memory.created_at),
    }
