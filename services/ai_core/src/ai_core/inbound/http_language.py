"""AI Core over HTTP: ``/api/v1/memories``, ``/api/v1/translate`` and ``/api/v1/speech``."""

import base64
from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from ai_core.inbound.http import Cursor, IdempotencyKey, PageSize
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
from service_kit.context import allow
from service_kit.http import problem_responses

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


class MemoryView(BaseModel):
    """A memory as its owner sees it."""

    id: str
    text: str
    tags: list[str]
    embedding: Literal["pending", "ready"]
    created_at: datetime


class MemoryList(BaseModel):
    """A page of memories, newest first."""

    items: list[MemoryView]
    next_cursor: str | None


class MatchView(MemoryView):
    """A memory that was found; the score is comparable within one answer."""

    score: float


class SearchResult(BaseModel):
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


def create_router(
    memories: Memories, language: Language, outcome: Outcome, *, chat_limit: float | None = None
) -> APIRouter:
    """The routes; each acts for the user of the bearer token. ``chat_limit``: seconds for a translation, if unusual."""
    router = APIRouter(
        prefix="/api/v1",
        tags=["language"],
        dependencies=[Depends(HTTPBearer(auto_error=False))],
        responses=problem_responses(401, 429, 503),
    )
    caller = Annotated[str, Depends(outcome.caller)]

    @router.post("/memories", status_code=201, responses=problem_responses(409))
    async def create(body: NewMemory, user: caller, key: IdempotencyKey = "") -> MemoryView:
        """Keep a memory. A repeated Idempotency-Key gives the memory made the first time."""
        return _view(await outcome.of(memories.create(user, body.text, body.tags, key)))

    @router.get("/memories")
    async def page(user: caller, limit: PageSize = DEFAULT_PAGE, cursor: Cursor = "") -> MemoryList:
        """List one's memories."""
        found = await outcome.of(memories.page(user, limit, cursor))
        return MemoryList(items=[_view(memory) for memory in found.items], next_cursor=found.next_cursor or None)

    @router.get("/memories/search")
    async def search(user: caller, query: Words, limit: PageSize = DEFAULT_PAGE) -> SearchResult:
        """Find memories by their words."""
        found = await outcome.of(memories.search(user, query, limit))
        items = [MatchView(**_view(match.memory).model_dump(), score=match.score) for match in found.matches]
        return SearchResult(items=items, search=found.search)

    @router.delete("/memories/{memory_id:uuid}", status_code=204, responses=problem_responses(404))
    async def delete(memory_id: UUID, user: caller) -> None:
        """Forget a memory."""
        await outcome.of(memories.delete(user, str(memory_id)))

    @router.post("/translate", dependencies=[Depends(outcome.caller)])
    async def translate(body: ToTranslate) -> TranslationView:
        """Translate a text."""
        if chat_limit is not None:
            allow(chat_limit)
        made = await outcome.of(language.translate(body.text, body.target_language, body.source_language or ""))
        return TranslationView(
            text=made.text,
            translated=made.translated,
            provider=made.provider or None,
            model=made.model or None,
            simulated=made.simulated,
        )

    @router.post("/speech", dependencies=[Depends(outcome.caller)])
    async def speak(body: ToSpeak) -> SpeechView:
        """Speak a text."""
        made = await outcome.of(language.speak(body.text, body.voice))
        audio = None if made.audio is None else base64.b64encode(made.audio).decode()
        return SpeechView(
            text=made.text, audio=audio, content_type=made.content_type or None, provider=made.provider or None
        )

    return router


def _view(memory: Memory) -> MemoryView:
    return MemoryView(
        id=memory.id,
        text=memory.text,
        tags=list(memory.tags),
        embedding=memory.embedding,
        created_at=datetime.fromtimestamp(memory.created_at, UTC),
    )
