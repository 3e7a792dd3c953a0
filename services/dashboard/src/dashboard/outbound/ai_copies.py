"""Copies of agents and memories for the time without AI Core, each under its owner: nobody is served another's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dashboard.model import Agent, Memory, Page
from dashboard.outbound.reading import number, text
from resilience import Rung
from service_kit.copies import CopyStore

T = TypeVar("T")
USUAL_LIMIT = 50
"""Items of a page whose size nobody named: the list that is dropped when one of its items is deleted."""


class AiCoreCopies:
    """See the port."""

    def __init__(self, store: CopyStore) -> None:
        self._store = store

    def keep_agent(self, owner: str, agent: Agent) -> None:
        """See the port."""
        self._store.keep(_agent(owner, agent.id), agent, round(agent.updated_at * 1e6))

    def keep_agents(self, owner: str, limit: int, page: Page[Agent]) -> None:
        """See the port."""
        self._store.keep(_agents(owner, limit), page)

    def keep_memories(self, owner: str, limit: int, page: Page[Memory]) -> None:
        """See the port."""
        self._store.keep(_memories(owner, limit), page)

    def agent(self, owner: str, agent_id: str) -> tuple[Rung[Agent], ...]:
        """See the port."""
        return self._store.rungs(_agent(owner, agent_id), agent_of)

    def agents(self, owner: str, limit: int) -> tuple[Rung[Page[Agent]], ...]:
        """See the port."""
        return self._store.rungs(_agents(owner, limit), lambda value: _page(value, agent_of))

    def memories(self, owner: str, limit: int) -> tuple[Rung[Page[Memory]], ...]:
        """See the port."""
        return self._store.rungs(_memories(owner, limit), lambda value: _page(value, memory_of))

    async def forget_agent(self, owner: str, agent_id: str) -> None:
        """See the port."""
        await self._store.forget(_agent(owner, agent_id), _agents(owner, USUAL_LIMIT))

    async def forget_memories(self, owner: str) -> None:
        """See the port."""
        await self._store.forget(_memories(owner, USUAL_LIMIT))


def agent_of(value: Any) -> Agent | None:
    """An agent from the plain data of a copy; None when it cannot be told which."""
    if not isinstance(value, Mapping) or not (agent_id := text(value.get("id"))):
        return None
    name, prompt, model = (text(value.get(field)) for field in ("name", "system_prompt", "model"))
    created = number(value.get("created_at"))
    return Agent(agent_id, name, prompt, model, created, number(value.get("updated_at"), created))


def memory_of(value: Any) -> Memory | None:
    """A memory from the plain data of a copy; None when it cannot be told which."""
    if not isinstance(value, Mapping) or not (memory_id := text(value.get("id"))):
        return None
    tags = value.get("tags")
    labels = tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else ()
    embedding = text(value.get("embedding"), "pending")
    return Memory(memory_id, text(value.get("text")), labels, embedding, number(value.get("created_at")))


def _page(value: Any, item: Callable[[Any], T | None]) -> Page[T] | None:
    """A page; items that cannot be read are left out."""
    if not isinstance(value, Mapping) or not isinstance(value.get("items"), list):
        return None
    read = [item(one) for one in value["items"]]
    return Page([one for one in read if one is not None], text(value.get("next_cursor")) or None)


def _agent(owner: str, agent_id: str) -> str:
    return f"agent:{owner}:{agent_id}"


def _agents(owner: str, limit: int) -> str:
    return f"agents:{owner}:{limit}"


def _memories(owner: str, limit: int) -> str:
    return f"memories:{owner}:{limit}"
