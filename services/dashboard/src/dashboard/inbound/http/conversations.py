"""What was said to an agent, passed on from AI Core: ``/api/v1/agents/{id}/conversations`` (row D3)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from dashboard.degradation import AI_CORE, QUEUED_TEXT
from dashboard.inbound.http.doors import AnyId, Cursor, Doorman, PageSize, Prefer, listed
from dashboard.inbound.outcome import Outcome
from dashboard.model import Conversation
from dashboard.usecases.assistant import Conversations
from service_kit.http import problem_responses, queued_answer, served_json, stamp


class TurnView(BaseModel):
    """One message."""

    role: Literal["user", "assistant"]
    content: str


class ConversationItem(BaseModel):
    """A conversation in a list."""

    id: str
    updated_at: datetime


class Origin(BaseModel):
    """Where an answer comes from, when it is a copy."""

    pending: Annotated[bool | None, Field(description="Shows what is said and not written down yet.")] = None
    stale: Annotated[bool | None, Field(description="Set when a fallback served: may be outdated.")] = None
    as_of: Annotated[datetime | None, Field(description="When the copy was made.")] = None


class ConversationView(ConversationItem, Origin):
    """A conversation: its newest messages, oldest first."""

    turns: list[TurnView]


class ConversationList(Origin):
    """A page of conversations, the one that was used last first."""

    items: list[ConversationItem]
    next_cursor: str | None


def create_router(conversations: Conversations, outcome: Outcome, doorman: Doorman) -> APIRouter:
    """The routes."""
    router = APIRouter(
        prefix="/api/v1/agents/{agent_id}/conversations",
        tags=["agents"],
        dependencies=[Depends(doorman.user)],
        responses=problem_responses(401, 404, 429, 503),
    )
    accepted: Any = {202: {"description": "Accepted; will be forgotten."}, **problem_responses(409)}

    @router.get("", response_model=ConversationList)
    async def page(agent_id: AnyId, limit: PageSize = 50, cursor: Cursor = None) -> Response:
        """List the conversations with an agent."""
        served = await outcome.of(conversations.page(agent_id, limit, cursor))
        return served_json(served, listed([_item(one) for one in served.value.items], served.value.next_cursor))

    @router.get("/{conversation_id}", response_model=ConversationView)
    async def get(agent_id: AnyId, conversation_id: AnyId) -> Response:
        """Read what was said."""
        served = await outcome.of(conversations.get(agent_id, conversation_id))
        turns = [{"role": turn.role, "content": turn.content} for turn in served.value.turns]
        return served_json(served, {**_item(served.value), "turns": turns})

    @router.delete("/{conversation_id}", status_code=204, responses=accepted)
    async def delete(agent_id: AnyId, conversation_id: AnyId, prefer: Prefer = None) -> Response:
        """Forget a conversation; queued by AI Core while its database is away."""
        served = await outcome.of(conversations.delete(agent_id, conversation_id))
        if operation_id := served.value.operation_id:
            return queued_answer(served, operation_id, AI_CORE, QUEUED_TEXT, prefer=prefer)
        return Response(status_code=204)

    return router


def _item(conversation: Conversation) -> dict[str, Any]:
    return {"id": conversation.id, "updated_at": stamp(conversation.updated_at)}
