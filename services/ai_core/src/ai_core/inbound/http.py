"""AI Core over HTTP: ``/api/v1/agents`` and what is below it."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from ai_core.inbound.outcome import Outcome
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
    Reply,
)
from ai_core.usecases.agents import Agents
from ai_core.usecases.chat import Chat
from service_kit.context import allow
from service_kit.http import problem_responses

Name = Annotated[str, Field(min_length=1, max_length=NAME_LIMIT, pattern=f"^{VISIBLE_PATTERN}$")]
Prompt = Annotated[str, Field(max_length=PROMPT_LIMIT, pattern=r"^[^\x00]*$")]
Model = Annotated[str, Field(max_length=MODEL_LIMIT, pattern=f"^({MODEL_PATTERN})?$")]
Message = Annotated[str, Field(min_length=1, max_length=MESSAGE_LIMIT, pattern=f"^{VISIBLE_PATTERN}$")]
AgentId = Annotated[str, Path(max_length=100)]
Cursor = Annotated[str, Query(max_length=200)]
PageSize = Annotated[int, Query(alias="limit", ge=1, le=PAGE_LIMIT)]
IdempotencyKey = Annotated[str, Header(alias="Idempotency-Key", max_length=KEY_LIMIT)]


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
    conversation_id: Annotated[str | None, Field(max_length=100)] = None


class AgentView(BaseModel):
    """An agent as its owner sees it."""

    id: str
    name: str
    system_prompt: str
    model: str
    created_at: datetime
    updated_at: datetime


class AgentList(BaseModel):
    """A page of agents, newest first."""

    items: list[AgentView]
    next_cursor: str | None


class ChatReply(BaseModel):
    """An agent's answer, and who really gave it."""

    reply: str
    provider: str
    model: str
    cached: bool
    fallback_from: str | None
    conversation_id: str
    simulated: bool


def create_router(agents: Agents, chat: Chat, outcome: Outcome, *, chat_limit: float | None = None) -> APIRouter:
    """The routes; each acts for the user of the bearer token. ``chat_limit`` in seconds, if not the usual one."""
    router = APIRouter(
        prefix="/api/v1/agents",
        tags=["agents"],
        dependencies=[Depends(HTTPBearer(auto_error=False))],
        responses=problem_responses(401, 404, 409, 429, 503),
    )
    caller = Annotated[str, Depends(outcome.caller)]

    @router.post("", status_code=201)
    async def create(body: NewAgent, user: caller, key: IdempotencyKey = "") -> AgentView:
        """Make an agent. A repeated Idempotency-Key gives the agent made the first time."""
        return _view(await outcome.of(agents.create(user, body.name, body.system_prompt, body.model, key)))

    @router.get("")
    async def page(user: caller, limit: PageSize = DEFAULT_PAGE, cursor: Cursor = "") -> AgentList:
        """List one's agents."""
        found = await outcome.of(agents.page(user, limit, cursor))
        return AgentList(items=[_view(agent) for agent in found.items], next_cursor=found.next_cursor or None)

    @router.get("/{agent_id}")
    async def get(agent_id: AgentId, user: caller) -> AgentView:
        """Read an agent."""
        return _view(await outcome.of(agents.get(user, agent_id)))

    @router.patch("/{agent_id}")
    async def update(agent_id: AgentId, body: AgentChange, user: caller) -> AgentView:
        """Change an agent."""
        return _view(await outcome.of(agents.update(user, agent_id, body.model_dump(exclude_unset=True))))

    @router.delete("/{agent_id}", status_code=204)
    async def delete(agent_id: AgentId, user: caller) -> None:
        """Delete an agent and its conversations."""
        await outcome.of(agents.delete(user, agent_id))

    @router.post("/{agent_id}/chat")
    async def talk(agent_id: AgentId, body: ChatMessage, user: caller) -> ChatReply:
        """Say something to an agent."""
        if chat_limit is not None:
            allow(chat_limit)
        return _reply(await outcome.of(chat.reply(user, agent_id, body.message, body.conversation_id or "")))

    return router


def _view(agent: Agent) -> AgentView:
    return AgentView(
        id=agent.id,
        name=agent.name,
        system_prompt=agent.system_prompt,
        model=agent.model,
        created_at=datetime.fromtimestamp(agent.created_at, UTC),
        updated_at=datetime.fromtimestamp(agent.updated_at, UTC),
    )


def _reply(reply: Reply) -> ChatReply:
    return ChatReply(
        reply=reply.reply,
        provider=reply.provider,
        model=reply.model,
        cached=reply.cached,
        fallback_from=reply.fallback_from or None,
        conversation_id=reply.conversation_id,
        simulated=reply.simulated,
    )
