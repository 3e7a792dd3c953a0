"""Memories, translation and speech, passed on to AI Core (row D3, dashboard.ai_core)."""

import base64
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field

from dashboard.inbound.http.ai_answers import page_body, writing
from dashboard.inbound.http.doors import Body, Cursor, Doorman, IdempotencyKey, PageSize
from dashboard.inbound.outcome import Outcome
from dashboard.model import Memory
from dashboard.usecases.assistant import Language, Memories
from service_kit import context
from service_kit.http import problem_responses, served_json, stamp
from service_kit.tokens import Claims

_VISIBLE = r"^[^\x00]*[^\x00-\x20\x7f-\xa0][^\x00]*$"
Text = Annotated[str, Field(min_length=1, max_length=10_000, pattern=_VISIBLE)]
Tag = Annotated[str, Field(min_length=1, max_length=50, pattern=_VISIBLE)]
Tags = Annotated[list[Tag], Field(max_length=20)]
Words = Annotated[str, Query(alias="q", min_length=1, max_length=500, pattern=_VISIBLE)]
LanguageName = Annotated[
    str,
    Field(
        min_length=2,
        max_length=35,
        pattern=r"^[A-Za-z]+([ -][A-Za-z0-9]+)*$",
        description="A language tag (BCP 47), for example pt-BR, or a language's English name.",
    ),
]
Voice = Annotated[str, Field(max_length=50, pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$")]


class NewMemory(Body):
    """A text to be remembered."""

    text: Text
    tags: Tags = Field(default_factory=list)


class MemoryView(BaseModel):
    """A memory as its owner sees it."""

    id: str
    text: str
    tags: list[str]
    embedding: Literal["pending", "ready"]
    created_at: datetime
    pending: Annotated[bool | None, Field(description="Set when it is kept and AI Core has not got it yet.")] = None
    operation_id: str | None = None
    status_url: str | None = None


class MemoryList(BaseModel):
    """A page of one's own memories, newest first."""

    items: list[MemoryView]
    next_cursor: str | None
    pending: Annotated[bool | None, Field(description="Shows own memories that AI Core has not got yet.")] = None
    incomplete: Annotated[bool | None, Field(description="Set when only those are known.")] = None
    stale: Annotated[bool | None, Field(description="Set when a fallback served: may be outdated.")] = None
    as_of: Annotated[datetime | None, Field(description="When the copy was read from AI Core.")] = None


class MatchView(MemoryView):
    """A memory that was found; the score is comparable within one answer."""

    score: float


class SearchResult(BaseModel):
    """What was found, best first, and how it was searched."""

    items: list[MatchView]
    search: Literal["semantic", "full-text"]


class ToTranslate(Body):
    """A text, and the language to translate it into."""

    text: Text
    target_language: LanguageName
    source_language: LanguageName | None = None


class TranslationView(BaseModel):
    """The text in the target language, or as it came when ``translated`` is false."""

    text: str
    translated: bool
    target_language: str
    provider: str | None
    model: str | None
    simulated: bool


class ToSpeak(Body):
    """A text to be spoken."""

    text: Text
    voice: Voice | None = None


class SpeechView(BaseModel):
    """The audio in base64, or null when there is only the text."""

    text: str
    audio: str | None
    content_type: str | None
    provider: str | None
    model: str | None
    simulated: bool


def create_router(
    memories: Memories, language: Language, outcome: Outcome, doorman: Doorman, *, chat_limit: float | None
) -> APIRouter:
    """The routes. ``chat_limit``: seconds for a request that waits for a provider, if not the usual ones."""
    router = APIRouter(
        prefix="/api/v1",
        tags=["ai"],
        dependencies=[Depends(doorman.user)],
        responses=problem_responses(401, 429, 503),
    )
    user = Annotated[Claims, Depends(doorman.user)]

    @router.post("/memories", status_code=201, response_model=MemoryView, responses=problem_responses(409))
    async def remember(body: NewMemory, caller: user, key: IdempotencyKey = None) -> Response:
        """Keep a memory; while AI Core is away it waits in the queue."""
        served = await outcome.of(writing(memories.create(caller.user_id, body.text, body.tags, key)))
        made = served.value
        found = _body(made.value)
        if made.operation_id:
            url = f"/api/v1/operations/{made.operation_id}"
            found |= {"operation_id": made.operation_id, "status_url": url}
        return served_json(served, found, status=201)

    @router.get("/memories", response_model=MemoryList)
    async def page(caller: user, limit: PageSize = 50, cursor: Cursor = None) -> Response:
        """List one's own memories; from a copy while AI Core is away."""
        served = await outcome.of(memories.page(caller.user_id, limit, cursor))
        return served_json(served, page_body(served, [_body(memory) for memory in served.value.items]))

    @router.get("/memories/search", response_model=SearchResult)
    async def search(query: Words, limit: PageSize = 50) -> Response:
        """Find memories."""
        served = await outcome.of(memories.search(query, limit))
        items = [{**_body(memory), "score": score} for memory, score in served.value.matches]
        return served_json(served, {"items": items, "search": served.value.search})

    # Not just any text: "search" must not be taken for an id.
    @router.delete("/memories/{memory_id:uuid}", status_code=204, responses=problem_responses(404))
    async def forget(memory_id: UUID, caller: user) -> None:
        """Forget a memory."""
        await outcome.of(memories.delete(caller.user_id, str(memory_id)))

    @router.post("/translate", response_model=TranslationView)
    async def translate(body: ToTranslate) -> Response:
        """Translate a text; while nobody can, it comes back as it is, and is marked."""
        _allow(chat_limit)
        served = await outcome.of(language.translate(body.text, body.target_language, body.source_language or ""))
        made = served.value
        named = {"provider": made.provider or None, "model": made.model or None}
        return served_json(served, {**asdict(made), **named, "target_language": body.target_language})

    @router.post("/speech", response_model=SpeechView)
    async def speak(body: ToSpeak) -> Response:
        """Speak a text; while nobody can, it comes back without audio, and is marked."""
        _allow(chat_limit)
        served = await outcome.of(language.speak(body.text, body.voice or ""))
        made = served.value
        audio = None if made.audio is None else base64.b64encode(made.audio).decode()
        named = {name: getattr(made, name) or None for name in ("content_type", "provider", "model")}
        return served_json(served, {"text": made.text, "audio": audio, **named, "simulated": made.simulated})

    return router


def _allow(limit: float | None) -> None:
    context.attend()
    if limit is not None:
        context.allow(limit)


def _body(memory: Memory) -> dict[str, Any]:
    body = {**asdict(memory), "created_at": stamp(memory.created_at)}
    return body if memory.pending else {name: value for name, value in body.items() if name != "pending"}
