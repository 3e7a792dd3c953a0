"""Copies of agents and conversations for the time without the database (row A1, ai_core.postgres).

Every key contains the owner: nobody is served another's. The times of changes, which only grow, are the versions; that
something is gone is a copy as well, so that a read which a deletion has overtaken does not bring it back.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ai_core.model import Agent, AgentUnknown, Conversation, Cursor, Page, Turn, conversation_place
from ai_core.outbound.list_copies import ListCopies, rungs, version_of
from resilience import MISSING, Clock, Missing, Rung, Served
from service_kit.copies import MEMORY_CACHE, REDIS_CACHE, Copy, CopyStore

Opened = tuple[Agent | None, Conversation | None]

_GONE = {"gone": True}
_TEXTS = ("id", "owner_id", "name", "system_prompt", "model")
_TIMES = ("created_at", "updated_at")
_ROLES = ("user", "assistant")


class StoredAgentCopies:
    """See ports.AgentCopies."""

    def __init__(self, store: CopyStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._agents = ListCopies(store, clock, agent_of)
        self._conversations = ListCopies(store, clock, listed_of, conversation_place)

    def keep(self, agent: Agent) -> None:
        """See the port."""
        self._store.keep(_agent(agent.owner_id, agent.id), agent, version_of(agent.updated_at))

    def keep_page(
        self, owner_id: str, agents: Sequence[Agent], *, complete: bool, since: float, after: Cursor | None
    ) -> None:
        """See the port."""
        self._agents.keep(_agents(owner_id), agents, complete=complete, since=since, after=after)

    async def changed(self, agents: Sequence[Agent]) -> None:
        """See the port."""
        for agent in agents:
            self.keep(agent)
        for owner in {agent.owner_id for agent in agents}:
            await self._agents.change(_agents(owner), [agent for agent in agents if agent.owner_id == owner], ())

    async def gone(self, owner_id: str, agent_id: str) -> None:
        """See the port."""
        self._store.keep(_agent(owner_id, agent_id), _GONE, version_of(self._clock.time()))
        await self._agents.change(_agents(owner_id), (), {agent_id})
        told = await self._conversations.ids(_conversations(owner_id, agent_id))
        await self._store.forget(
            _conversations(owner_id, agent_id), *(_conversation(owner_id, agent_id, one) for one in told)
        )

    def agent(self, owner_id: str, agent_id: str) -> tuple[Rung[Agent | None], ...]:
        """See the port."""
        return rungs(self._store, _agent(owner_id, agent_id), _known, (AgentUnknown,))

    def page(self, owner_id: str, size: int, after: Cursor | None) -> tuple[Rung[Page[Agent]], ...]:
        """See the port."""
        return self._agents.rungs(_agents(owner_id), size, after)

    def keep_conversation(self, owner_id: str, agent_id: str, conversation: Conversation) -> None:
        """See the port."""
        turns = [{"role": turn.role, "content": turn.content, "at": turn.at} for turn in conversation.turns]
        kept = {"id": conversation.id, "updated_at": conversation.updated_at, "turns": turns}
        self._store.keep(_conversation(owner_id, agent_id, conversation.id), kept, version_of(conversation.updated_at))

    def keep_conversations(
        self,
        owner_id: str,
        agent_id: str,
        found: Sequence[Conversation],
        *,
        complete: bool,
        since: float,
        after: Cursor | None,
    ) -> None:
        """See the port."""
        key = _conversations(owner_id, agent_id)
        self._conversations.keep(key, found, complete=complete, since=since, after=after)

    async def said(self, owner_id: str, agent_id: str, conversation: Conversation) -> None:
        """See the port."""
        self.keep_conversation(owner_id, agent_id, conversation)
        listed = Conversation(conversation.id, conversation.updated_at)
        await self._conversations.change(_conversations(owner_id, agent_id), [listed], ())

    async def forgotten(self, owner_id: str, agent_id: str, conversation_id: str) -> None:
        """See the port."""
        key = _conversation(owner_id, agent_id, conversation_id)
        self._store.keep(key, _GONE, version_of(self._clock.time()))
        await self._conversations.change(_conversations(owner_id, agent_id), (), {conversation_id})

    def opened(self, owner_id: str, agent_id: str, conversation_id: str) -> tuple[Rung[Opened], ...]:
        """See the port."""
        agent, said = _agent(owner_id, agent_id), _conversation(owner_id, agent_id, conversation_id)

        async def from_redis(_: BaseException) -> Served[Opened] | Missing:
            return _both(await self._store.shared(agent), await self._store.shared(said))

        async def from_memory(_: BaseException) -> Served[Opened] | Missing:
            return _both(self._store.local(agent), self._store.local(said))

        return Rung(REDIS_CACHE, from_redis, (AgentUnknown,)), Rung(MEMORY_CACHE, from_memory, (AgentUnknown,))

    def conversations(
        self, owner_id: str, agent_id: str, size: int, after: Cursor | None
    ) -> tuple[Rung[Page[Conversation]], ...]:
        """See the port."""
        agent, steps = (
            _agent(owner_id, agent_id),
            self._conversations.rungs(_conversations(owner_id, agent_id), size, after),
        )

        async def from_redis(failure: BaseException) -> Any:
            _refuse_gone(await self._store.shared(agent))
            return await steps[0].call(failure)

        async def from_memory(failure: BaseException) -> Any:
            _refuse_gone(self._store.local(agent))
            return await steps[1].call(failure)

        return Rung(REDIS_CACHE, from_redis, (AgentUnknown,)), Rung(MEMORY_CACHE, from_memory, (AgentUnknown,))


def agent_of(value: Any) -> Agent | None:
    """An agent from the plain data of a copy; None when it is none."""
    fields = value if isinstance(value, Mapping) else {}
    texts = [text for field in _TEXTS if isinstance(text := fields.get(field), str)]
    times = [float(time) for field in _TIMES if isinstance(time := fields.get(field), int | float)]
    found: list[Any] = [*texts, *times]
    return Agent(*found) if len(found) == len(_TEXTS) + len(_TIMES) else None


def listed_of(value: Any) -> Conversation | None:
    """A conversation of a list from the plain data of a copy; None when it is none."""
    fields = value if isinstance(value, Mapping) else {}
    one, at = fields.get("id"), fields.get("updated_at")
    return Conversation(one, float(at)) if isinstance(one, str) and isinstance(at, int | float) else None


def conversation_of(value: Any) -> Conversation | None:
    """A conversation from the plain data of a copy; turns that cannot be read are left out."""
    found = listed_of(value)
    turns = value.get("turns") if found else None
    if found is None or not isinstance(turns, list):
        return None
    read = [_turn(turn) for turn in turns]
    return Conversation(found.id, found.updated_at, tuple(turn for turn in read if turn is not None))


def _turn(value: Any) -> Turn | None:
    fields = value if isinstance(value, Mapping) else {}
    role, content, at = fields.get("role"), fields.get("content"), fields.get("at", 0.0)
    if role not in _ROLES or not isinstance(content, str) or not isinstance(at, int | float):
        return None
    return Turn("user" if role == "user" else "assistant", content, float(at))


def _known(copy: Copy | None) -> Served[Agent | None] | Missing:
    """Raises AgentUnknown for one that is known to be gone."""
    _refuse_gone(copy)
    agent = agent_of(copy.value) if copy else None
    return Served(agent, as_of=copy.as_of) if copy and agent else MISSING


def _refuse_gone(copy: Copy | None) -> None:
    if copy is not None and copy.value == _GONE:
        raise AgentUnknown


def _both(agent: Copy | None, said: Copy | None) -> Served[Opened] | Missing:
    """Raises AgentUnknown for an agent that is known to be gone."""
    known = _known(agent)
    if not isinstance(known, Served):
        return MISSING
    conversation = conversation_of(said.value) if said else None
    return Served((known.value, conversation), as_of=known.as_of)


def _agent(owner_id: str, agent_id: str) -> str:
    return f"ai:agent:{owner_id}:{agent_id}"


def _agents(owner_id: str) -> str:
    return f"ai:agents:{owner_id}"


def _conversation(owner_id: str, agent_id: str, conversation_id: str) -> str:
    return f"ai:conversation:{owner_id}:{agent_id}:{conversation_id}"


def _conversations(owner_id: str, agent_id: str) -> str:
    return f"ai:conversations:{owner_id}:{agent_id}"
