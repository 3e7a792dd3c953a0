"""Agents and chat, passed on to AI Core: ``/api/v1/agents`` (row D3, dashboard.ai_core)."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from dashboard.degradation import AI_CORE, QUEUED_AGENT_TEXT, QUEUED_TEXT
from dashboard.inbound.http import chats
from dashboard.inbound.http.ai_answers import page_body, writing
from dashboard.inbound.http.doors import (
    AnyId,
    Body,
    Cursor,
    Doorman,
    IdempotencyKey,
    Name,
    PageSize,
    Prefer,
)
from dashboard.inbound.outcome import Outcome
from dashboard.model import Agent
from dashboard.usecases.assistant import Agents
from service_kit import context
from service_kit.errors import CircuitOpen, DependencyUnavailable
from service_kit.http import problem_responses, queued_answer, served_json, stamp
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
    async def create(body: NewAgent, caller: user, key: IdempotencyKey = None, prefer: Prefer = None) -> Response:
        """Make an agent; while AI Core or its database is away it is queued, and made later."""
        work = agents.create(caller.user_id, body.name, body.system_prompt, body.model, key)
        served = await outcome.of(writing(work))
        made = served.value
        if not made.operation_id:
            return served_json(served.map(lambda _: None), agent_body(made.value), status=201)
        more = {"id": made.value.id, "pending": True}
        return queued_answer(
            served, made.operation_id, AI_CORE, QUEUED_AGENT_TEXT, prefer=prefer, accepted=True, more=more
        )

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

    @router.patch("/{agent_id}", response_model=AgentView, responses={**unknown, **accepted})
    async def change(agent_id: AnyId, body: AgentChange, caller: user, prefer: Prefer = None) -> Response:
        """Change an agent; queued by AI Core while its database is away."""
        work = agents.change(caller.user_id, agent_id, body.model_dump(exclude_none=True))
        served = await outcome.of(work)
        made = served.value
        if made.value is None or made.operation_id:
            return queued_answer(served, made.operation_id, AI_CORE, QUEUED_TEXT, prefer=prefer)
        return served_json(served, agent_body(made.value))

    @router.delete("/{agent_id}", status_code=204, responses={**unknown, **accepted})
    async def delete(agent_id: AnyId, caller: user, prefer: Prefer = None) -> Response:
        """Delete an agent; queued by AI Core while its database is away."""
        served = await outcome.of(agents.delete(caller.user_id, agent_id))
        if operation_id := served.value.operation_id:
            return queued_answer(served, operation_id, AI_CORE, QUEUED_TEXT, prefer=prefer)
        return Response(status_code=204)

    @router.post("/{agent_id}/chat", response_model=chats.ReplyView, responses=chats.RESPONSES)
    async def chat(agent_id: AnyId, body: ChatMessage, accept: chats.Accept = None) -> Response:
        """Say something to an agent; with `Accept: text/event-stream` the answer comes as events."""
        context.attend()
        if chat_limit is not None:
            context.allow(chat_limit)
        asked = agent_id, body.message, body.conversation_id or ""
        try:
            if chats.wants_events(accept):
                return chats.streamed(await outcome.of(agents.stream(*asked)))
            return chats.whole(await outcome.of(agents.chat(*asked)))
        except CircuitOpen as error:
            raise _as_the_row_says(error) from error

    return router


def _as_the_row_says(error: CircuitOpen) -> DependencyUnavailable:
    """Chat answers 503 also while the circuit is open and nothing is tried: row D3 names that status."""
    return DependencyUnavailable(
        error.message,
        row=error.row,
        retry_after=error.retry_after,
        circuit=error.circuit,
        degradations=error.degradations,
    )
