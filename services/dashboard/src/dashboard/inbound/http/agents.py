"""Agents and chat, passed on to AI Core: ``/api/v1/agents`` (row D3, dashboard.ai_core)."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from dashboard.degradation import AI_CORE, QUEUED_AGENT_TEXT
from dashboard.inbound.http.ai_answers import page_body, writing
from dashboard.inbound.http.doors import (
    AnyId,
    Body,
    Cursor,
    Doorman,
    IdempotencyKey,
    Name,
    PageSize,
)
from dashboard.inbound.outcome import Outcome
from dashboard.model import Agent
from dashboard.usecases.assistant import Agents
from dashboard.usecases.creations import Made
from resilience import Served
from service_kit import context
from service_kit.errors import CircuitOpen, DependencyUnavailable, to_problem
from service_kit.http import json_response, problem_responses, served_json, stamp
from service_kit.tokens import Claims

# As AI Core wants it: what it would refuse must not wait in the queue.
AgentName = Annotated[Name, Field(pattern=r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f-\xa0][^\x00-\x1f\x7f]*$")]
Prompt = Annotated[str, Field(max_length=20_000, pattern=r"^[^\x00]*$")]
Model = Annotated[str, Field(max_length=100, pattern=r"^([A-Za-z0-9][A-Za-z0-9._:/-]*)?$")]
UUID = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
Message = Annotated[str, Field(min_length=1, max_length=20_000, pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")]


class NewAgent(Body):
    """A new agent; without a model it uses the platform's first one."""

    name: AgentName
    system_prompt: Prompt = ""
    model: Model = ""


class AgentChange(Body):
    """The fields to change; the others stay."""

    name: AgentName | None = None
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
    pending: Annotated[bool | None, Field(description="Set when it is accepted and not made yet.")] = None
    stale: Annotated[bool | None, Field(description="Set when a fallback served: may be outdated.")] = None
    as_of: Annotated[datetime | None, Field(description="When the copy was read from AI Core.")] = None


class AgentList(BaseModel):
    """A page of one's own agents."""

    items: list[AgentView]
    next_cursor: str | None
    pending: Annotated[bool | None, Field(description="Shows own agents that are not made yet.")] = None
    incomplete: Annotated[bool | None, Field(description="Set when only those that are not made yet are known.")] = None
    stale: Annotated[bool | None, Field(description="Set when a fallback served: may be outdated.")] = None
    as_of: Annotated[datetime | None, Field(description="When the copy was read from AI Core.")] = None


class ReplyView(BaseModel):
    """An agent's answer, and who really gave it."""

    reply: str
    provider: str
    model: str
    cached: bool
    fallback_from: str | None
    conversation_id: str
    simulated: bool


def agent_body(agent: Agent) -> dict[str, Any]:
    body = {**asdict(agent), "created_at": stamp(agent.created_at), "updated_at": stamp(agent.updated_at)}
    return body if agent.pending else {name: value for name, value in body.items() if name != "pending"}


def create_router(agents: Agents, outcome: Outcome, doorman: Doorman, *, chat_limit: float | None) -> APIRouter:
    """The routes. ``chat_limit``: seconds for a chat request, if not the usual ones."""
    router = APIRouter(
        prefix="/api/v1/agents",
        tags=["agents"],
        dependencies=[Depends(doorman.user)],
        responses=problem_responses(401, 429, 503),
    )
    user = Annotated[Claims, Depends(doorman.user)]
    unknown = problem_responses(404)
    accepted: Any = {202: {"description": "Accepted; will be made."}, **problem_responses(409)}

    @router.post("", status_code=201, response_model=AgentView, responses=accepted)
    async def create(body: NewAgent, caller: user, key: IdempotencyKey = None) -> Response:
        """Make an agent; while AI Core is away it is queued, and made later."""
        work = agents.create(caller.user_id, body.name, body.system_prompt, body.model, key)
        served = await outcome.of(writing(work))
        made = served.value
        if not made.operation_id:
            return served_json(served.map(lambda _: None), agent_body(made.value), status=201)
        return _queued(served, made)

    @router.get("", response_model=AgentList)
    async def page(caller: user, limit: PageSize = 50, cursor: Cursor = None) -> Response:
        """List one's own agents; from a copy while AI Core is away."""
        served = await outcome.of(agents.page(caller.user_id, limit, cursor))
        return served_json(served, page_body(served, [agent_body(agent) for agent in served.value.items]))

    @router.get("/{agent_id}", response_model=AgentView, responses=unknown)
    async def get(agent_id: AnyId, caller: user) -> Response:
        """Read an agent; from a copy while AI Core is away."""
        served = await outcome.of(agents.get(caller.user_id, agent_id))
        return served_json(served, agent_body(served.value))

    @router.patch("/{agent_id}", response_model=AgentView, responses=unknown)
    async def change(agent_id: AnyId, body: AgentChange, caller: user) -> Response:
        """Change an agent."""
        work = agents.change(caller.user_id, agent_id, body.model_dump(exclude_none=True))
        served = await outcome.of(work)
        return served_json(served, agent_body(served.value))

    @router.delete("/{agent_id}", status_code=204, responses=unknown)
    async def delete(agent_id: AnyId, caller: user) -> None:
        """Delete an agent."""
        await outcome.of(agents.delete(caller.user_id, agent_id))

    @router.post("/{agent_id}/chat", response_model=ReplyView, responses=problem_responses(404, 409))
    async def chat(agent_id: AnyId, body: ChatMessage) -> Response:
        """Say something to an agent."""
        if chat_limit is not None:
            context.allow(chat_limit)
        try:
            served = await outcome.of(agents.chat(agent_id, body.message, body.conversation_id or ""))
        except CircuitOpen as error:
            raise _as_the_row_says(error) from error
        reply = served.value
        return served_json(served, {**asdict(reply), "fallback_from": reply.fallback_from or None})

    return router


def _queued(served: Served[Made[Agent]], made: Made[Agent]) -> Response:
    """202 with the promise to make it (row D3), and the id under which it will be found."""
    wait = served.degradations[0].retry_after if served.degradations else None
    promise = DependencyUnavailable(
        QUEUED_AGENT_TEXT,
        status=202,
        row=AI_CORE.id,
        retry_after=AI_CORE.probe_interval if wait is None else wait,
        queued=True,
        operation_id=made.operation_id,
        status_url=f"/api/v1/operations/{made.operation_id}",
        suggestion="Look at status_url to see when it is made.",
    )
    body = {**to_problem(promise, context.request_id()), "id": made.value.id, "pending": True}
    return json_response(body, status=202, headers={"location": promise.status_url or ""})


def _as_the_row_says(error: CircuitOpen) -> DependencyUnavailable:
    """Chat answers 503 also while the circuit is open and nothing is tried: row D3 names that status."""
    return DependencyUnavailable(
        error.message,
        row=error.row,
        retry_after=error.retry_after,
        circuit=error.circuit,
        degradations=error.degradations,
    )
