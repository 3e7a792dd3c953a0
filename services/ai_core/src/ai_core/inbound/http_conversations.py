"""AI Core over HTTP: conversations with agents, and what became of queued writes (row A1, ai_core.postgres)."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Response
from pydantic import BaseModel

from ai_core.inbound.http import (
    AgentId,
    Cursor,
    IdempotencyKey,
    PageSize,
    Prefer,
    Provenance,
    bearer,
    write_answer,
    written,
)
from ai_core.inbound.outcome import Outcome
from ai_core.model import DEFAULT_PAGE, Conversation
from ai_core.usecases.conversations import Conversations
from ai_core.usecases.operations import Operations
from resilience import OperationRecord
from service_kit.http import json_response, problem_responses, served_json, stamp

ConversationId = Annotated[str, Path(max_length=100)]
OperationId = Annotated[str, Path(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_-]+$")]


class TurnView(BaseModel):
    """One message."""

    role: Literal["user", "assistant"]
    content: str


class ConversationFields(BaseModel):
    """A conversation in a list."""

    id: str
    updated_at: datetime


class ConversationView(ConversationFields, Provenance):
    """A conversation: the newest messages, oldest first."""

    turns: list[TurnView]


class ConversationList(Provenance):
    """A page of conversations, the one that was used last first."""

    items: list[ConversationFields]
    next_cursor: str | None


class OperationView(BaseModel):
    """What became of a queued write."""

    id: str
    status: Literal["queued", "applying", "applied", "dead"]
    kind: str
    accepted_at: datetime | None = None
    error: str | None = None


def create_router(conversations: Conversations, operations: Operations, outcome: Outcome) -> APIRouter:
    """The routes; each acts for the user of the bearer token."""
    router = APIRouter(
        prefix="/api/v1", tags=["agents"], dependencies=[bearer], responses=problem_responses(401, 404, 429, 503)
    )
    caller = Annotated[str, Depends(outcome.caller)]

    @router.get("/agents/{agent_id}/conversations", response_model=ConversationList)
    async def page(agent_id: AgentId, user: caller, limit: PageSize = DEFAULT_PAGE, cursor: Cursor = "") -> Response:
        """List the conversations with an agent."""
        found = await outcome.served(conversations.page(user, agent_id, limit, cursor))
        items = [_listed(one) for one in found.value.items]
        return served_json(found, {"items": items, "next_cursor": found.value.next_cursor or None})

    @router.get("/agents/{agent_id}/conversations/{conversation_id}", response_model=ConversationView)
    async def get(agent_id: AgentId, conversation_id: ConversationId, user: caller) -> Response:
        """Read what was said."""
        found = await outcome.served(conversations.get(user, agent_id, conversation_id))
        turns = [{"role": turn.role, "content": turn.content} for turn in found.value.turns]
        return served_json(found, {**_listed(found.value), "turns": turns})

    @router.delete("/agents/{agent_id}/conversations/{conversation_id}", status_code=204, responses=written)
    async def delete(
        agent_id: AgentId, conversation_id: ConversationId, user: caller, key: IdempotencyKey = "", prefer: Prefer = ""
    ) -> Response:
        """Forget a conversation."""
        return write_answer(
            await outcome.served(conversations.delete(user, agent_id, conversation_id, key)), 204, prefer
        )

    @router.get("/operations/{operation_id}", response_model=OperationView)
    async def operation(operation_id: OperationId, user: caller) -> Response:
        """What became of one's own queued write."""
        found = await outcome.of(operations.status(user, operation_id))
        return json_response(_operation(operation_id, found))

    return router


def _listed(conversation: Conversation) -> dict[str, Any]:
    return {"id": conversation.id, "updated_at": stamp(conversation.updated_at)}


def _operation(operation_id: str, record: OperationRecord) -> dict[str, Any]:
    operation = record.operation
    body: dict[str, Any] = {
        "id": operation_id,
        "status": record.status.value,
        "kind": operation.kind if operation else "",
    }
    if operation and operation.accepted_at:
        body["accepted_at"] = stamp(operation.accepted_at)
    return {**body, "error": record.error} if record.error else body
