"""AI Core over HTTP: ``/api/v1/agents`` and what is below it."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from ai_core.degradation import POSTGRES, QUEUED_TEXT
from ai_core.inbound.outcome import Outcome
from ai_core.inbound.streams import RESPONSES, reply_body, streamed, usage_body, wants_events
from ai_core.model import (
    DEFAULT_PAGE,
    KEY_LIMIT,
    MESSAGE_LIMIT,
    MODEL_LIMIT,
    MODEL_PATTERN,
    NAME_LIMIT,
    PAGE_LIMIT,
    PROMPT_LIMIT,
    VISIBLE_PATTERN,
    Agent,
)
from ai_core.usecases.agents import Agents
from ai_core.usecases.chat import Chat
from ai_core.usecases.writes import Made
from resilience import Served
from service_kit.context import allow, attend
from service_kit.http import problem_responses, queued_answer, served_json, stamp

Name = Annotated[str, Field(min_length=1, max_length=NAME_LIMIT, pattern=f"^{VISIBLE_PATTERN}$")]
Prompt = Annotated[str, Field(max_length=PROMPT_LIMIT, pattern=r"^[^\x00]*$")]
Model = Annotated[str, Field(max_length=MODEL_LIMIT, pattern=f"^({MODEL_PATTERN})?$")]
Message = Annotated[str, Field(min_length=1, max_length=MESSAGE_LIMIT, pattern=f"^{VISIBLE_PATTERN}$")]
CONVERSATION_PATTERN = r"^([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})?$"
AgentId = Annotated[str, Path(max_length=100)]
Cursor = Annotated[str, Query(max_length=200)]
PageSize = Annotated[int, Query(alias="limit", ge=1, le=PAGE_LIMIT)]
IdempotencyKey = Annotated[str, Header(alias="Idempotency-Key", max_length=KEY_LIMIT)]
Prefer = Annotated[str, Header(alias="Prefer", max_length=200)]
Accept = Annotated[str, Header(alias="Accept", max_length=500)]
Stale = Annotated[bool | None, Field(description="Set when a fallback served: may be outdated.")]
AsOf = Annotated[datetime | None, Field(description="When the copy was read from the database.")]
Pending = Annotated[bool | None, Field(description="Shows own changes that are not applied yet.")]

# A write that is queued answers 202 when the client prefers that, else 503.
written: Any = {202: {"description": "Accepted; will be applied."}, **problem_responses(409)}
bearer = Depends(HTTPBearer(auto_error=False))


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewAgent(_Body):
    """A new agent; an empty model means the platform's first one."""

    name: Name
    system_prompt: Prompt = ""
    model: Model = ""


class AgentChange(_Body):
    """The fields to change; the others stay."""

    name: Name = ""
    system_prompt: Prompt = ""
    model: Model = ""


class ChatMessage(_Body):
    """A message to an agent; without a conversation's id it begins a new one."""

    message: Message
    conversation_id: Annotated[str | None, Field(pattern=CONVERSATION_PATTERN)] = None


class Provenance(BaseModel):
    """Where an answer came from; nothing of it when it is live."""

    stale: Stale = None
    as_of: AsOf = None
    pending: Pending = None


class AgentFields(BaseModel):
    """An agent as its owner sees it."""

    id: str
    name: str
    system_prompt: str
    model: str
    created_at: datetime
    updated_at: datetime


class AgentView(AgentFields, Provenance):
    """One agent."""


class AgentList(Provenance):
    """A page of agents, newest first."""

    items: list[AgentFields]
    next_cursor: str | None


class UsageView(BaseModel):
    """What an answer cost: tokens, and US dollars when a price is known."""

    prompt_tokens: int
    completion_tokens: int
    cost: float | None


class ChatReply(BaseModel):
    """An agent's answer, and who really gave it."""

    reply: str
    provider: str
    model: str
    cached: bool
    as_of: Annotated[datetime | None, Field(description="When a cached answer was given.")]
    fallback_from: str | None
    conversation_id: str
    simulated: bool
    usage: UsageView
    finish_reason: str | None


def create_router(agents: Agents, chat: Chat, outcome: Outcome, *, chat_limit: float | None = None) -> APIRouter:
    """The routes; each acts for the user of the bearer token. ``chat_limit`` in seconds, if not the usual one."""
    router = APIRouter(
        prefix="/api/v1/agents",
        tags=["agents"],
        dependencies=[bearer],
        responses=problem_responses(401, 404, 429, 503),
    )
    caller = Annotated[str, Depends(outcome.caller)]

    @router.post("", status_code=201, response_model=AgentView, responses=written)
    async def create(body: NewAgent, user: caller, key: IdempotencyKey = "", prefer: Prefer = "") -> Response:
        """Make an agent. A repeated Idempotency-Key gives the agent made the first time."""
        made = agents.create(user, body.name, body.system_prompt, body.model, key)
        return write_answer(await outcome.served(made), 201, prefer, agent_body)

    @router.get("", response_model=AgentList)
    async def page(user: caller, limit: PageSize = DEFAULT_PAGE, cursor: Cursor = "") -> Response:
        """List one's agents; from a copy while the database is away."""
        found = await outcome.served(agents.page(user, limit, cursor))
        items = [agent_body(agent) for agent in found.value.items]
        return served_json(found, {"items": items, "next_cursor": found.value.next_cursor or None})

    @router.get("/{agent_id}", response_model=AgentView)
    async def get(agent_id: AgentId, user: caller) -> Response:
        """Read an agent; from a copy while the database is away."""
        found = await outcome.served(agents.get(user, agent_id))
        return served_json(found, agent_body(found.value))

    @router.patch("/{agent_id}", response_model=AgentView, responses=written)
    async def update(
        agent_id: AgentId, body: AgentChange, user: caller, key: IdempotencyKey = "", prefer: Prefer = ""
    ) -> Response:
        """Change an agent."""
        changed = agents.update(user, agent_id, body.model_dump(exclude_unset=True), key)
        return write_answer(await outcome.served(changed), 200, prefer, agent_body)

    @router.delete("/{agent_id}", status_code=204, responses=written)
    async def delete(agent_id: AgentId, user: caller, key: IdempotencyKey = "", prefer: Prefer = "") -> Response:
        """Delete an agent and its conversations."""
        return write_answer(await outcome.served(agents.delete(user, agent_id, key)), 204, prefer)

    @router.post("/{agent_id}/chat", response_model=ChatReply, responses={**problem_responses(409), **RESPONSES})
    async def talk(agent_id: AgentId, body: ChatMessage, user: caller, accept: Accept = "") -> Response:
        """Say something to an agent; with ``Accept: text/event-stream`` the answer comes as server-sent events."""
        attend()
        if chat_limit is not None:
            allow(chat_limit)
        asked = user, agent_id, body.message, body.conversation_id or ""
        if wants_events(accept):
            return streamed(await outcome.of(chat.stream(*asked)))
        served = await outcome.served(chat.reply(*asked))
        reply = served.value
        known = {**reply_body(reply), **usage_body(reply)}
        return served_json(served.map(lambda _: None), {"reply": reply.reply, **known})

    return router


def write_answer(
    served: Served[Made[Any]], status: int, prefer: str, body: Callable[[Any], dict[str, Any]] | None = None
) -> Response:
    """What was written, or the promise to. Raises DependencyUnavailable for a 503 with that promise."""
    if operation_id := served.value.operation_id:
        return queued_answer(served, operation_id, POSTGRES, QUEUED_TEXT, prefer=prefer)
    if body is None:
        return Response(status_code=status)
    return served_json(served, body(served.value.value), status=status)


def agent_body(agent: Agent) -> dict[str, Any]:
    """The public form of an agent."""
    return {
        "id": agent.id,
        "name": agent.name,
        "system_prompt": agent.system_prompt,
        "model": agent.model,
        "created_at": stamp(agent.created_at),
        "updated_at": stamp(agent.updated_at),
    }
