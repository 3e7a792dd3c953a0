"""Agents and chat, passed on to AI Core: ``/api/v1/agents`` (row D3, dashboard.ai_core)."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from dashboard.inbound.http.doors import (
    AnyId,
    Body,
    Cursor,
    Doorman,
    IdempotencyKey,
    Name,
    PageSize,
    listed,
)
from dashboard.inbound.outcome import Outcome
from dashboard.model import Agent
from dashboard.ports import Agents
from service_kit import context
from service_kit.http import problem_responses, served_json, stamp

Prompt = Annotated[str, Field(max_length=20_000, pattern=r"^[^\x00]*$")]
Model = Annotated[str, Field(max_length=100, pattern=r"^([A-Za-z0-9][A-Za-z0-9._:/-]*)?$")]
UUID = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
Message = Annotated[str, Field(min_length=1, max_length=20_000, pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")]


class NewAgent(Body):
    """A new agent; without a model it uses the platform's first one."""

    name: Name
    system_prompt: Prompt = ""
    model: Model = ""


class AgentChange(Body):
    """The fields to change; the others stay."""

    name: Name | None = None
    system_prompt: Prompt | None = None
    model: Model | None = None


class ChatMessage(Body):
    """A message; without a conversation's id it begins a new one."""

    message: Message
    conversation_id: Annotated[str | None, Field(pattern=UUID)] = None


class AgentView(BaseModel):
    """An agent as its owner sees it."""

    id: str
    name: str
    system_prompt: str
    model: str
    created_at: datetime
    updated_at: datetime


class AgentList(BaseModel):
    """A page of one's own agents."""

    items: list[AgentView]
    next_cursor: str | None


class ReplyView(BaseModel):
    """An agent's answer, and who really gave it."""

    reply: str
    provider: str
    model: str
    cached: bool
    fallback_from: str | None
    conversation_id: str
    simulated: bool


def _body(agent: Agent) -> dict[str, Any]:
    return {**asdict(agent), "created_at": stamp(agent.created_at), "updated_at": stamp(agent.updated_at)}


def create_router(agents: Agents, outcome: Outcome, doorman: Doorman, *, chat_limit: float | None) -> APIRouter:
    """The routes. ``chat_limit``: seconds for a chat request, if not the usual ones."""
    router = APIRouter(
        prefix="/api/v1/agents",
        tags=["agents"],
        dependencies=[Depends(doorman.user)],
        responses=problem_responses(401, 429, 503),
    )
    unknown = problem_responses(404)

    @router.post("", status_code=201, response_model=AgentView, responses=problem_responses(409))
    async def create(body: NewAgent, key: IdempotencyKey = None) -> Response:
        """Make an agent."""
        served = await outcome.of(agents.create(body.name, body.system_prompt, body.model, key or ""))
        return served_json(served, _body(served.value), status=201)

    @router.get("", response_model=AgentList)
    async def page(limit: PageSize = 50, cursor: Cursor = None) -> Response:
        """List one's own agents."""
        served = await outcome.of(agents.page(limit, cursor))
        return served_json(served, listed([_body(agent) for agent in served.value.items], served.value.next_cursor))

    @router.get("/{agent_id}", response_model=AgentView, responses=unknown)
    async def get(agent_id: AnyId) -> Response:
        """Read an agent."""
        served = await outcome.of(agents.get(agent_id))
        return served_json(served, _body(served.value))

    @router.patch("/{agent_id}", response_model=AgentView, responses=unknown)
    async def change(agent_id: AnyId, body: AgentChange) -> Response:
        """Change an agent."""
        served = await outcome.of(agents.change(agent_id, body.model_dump(exclude_none=True)))
        return served_json(served, _body(served.value))

    @router.delete("/{agent_id}", status_code=204, responses=unknown)
    async def delete(agent_id: AnyId) -> None:
        """Delete an agent."""
        await outcome.of(agents.delete(agent_id))

    @router.post("/{agent_id}/chat", response_model=ReplyView, responses=unknown)
    async def chat(agent_id: AnyId, body: ChatMessage) -> Response:
        """Say something to an agent."""
        if chat_limit is not None:
            context.allow(chat_limit)
        served = await outcome.of(agents.chat(agent_id, body.message, body.conversation_id or ""))
        reply = served.value
        return served_json(served, {**asdict(reply), "fallback_from": reply.fallback_from or None})

    return router
