"""Agents: making, reading, listing, changing and deleting one's own (row A1, ai_core.postgres)."""

from collections.abc import Mapping

from ai_core.model import (
    Agent,
    AgentUnknown,
    Cursor,
    Invalid,
    Page,
    checked,
    checked_key,
    checked_page_size,
    chosen_id,
    fingerprint,
    is_id,
    page_of,
)
from ai_core.ports import AgentStore
from resilience import Clock, RowPolicy, Served

CHANGEABLE = frozenset({"name", "system_prompt", "model"})


class Agents:
    """Each method acts for ``owner``, who sees no other agents than the own ones."""

    def __init__(self, store: AgentStore, postgres: RowPolicy, clock: Clock) -> None:
        self._store = store
        self._postgres = postgres
        self._clock = clock

    async def create(
        self, owner: str, name: str, system_prompt: str, model: str, key: str = "", agent_id: str = ""
    ) -> Served[Agent]:
        """A new agent, under ``agent_id`` if given; a repeated ``key`` gives the one made the first time.

        Raises Invalid, KeyReused, IdTaken, TooManyAgents.
        """
        texts = checked({"name": name, "system_prompt": system_prompt, "model": model})
        checked({"idempotency_key": key})
        now = self._clock.time()
        agent = Agent(chosen_id(agent_id), owner, name, system_prompt, model, now, now)
        request = fingerprint({**texts, "id": agent_id} if agent_id else texts)
        return await self._postgres.serve(lambda: self._store.create(agent, key, request))

    async def abandon(self, owner: str, key: str) -> Served[None]:
        """No later creation with this key makes an agent; one made before stays. Raises Invalid."""
        known, now = checked_key(key), self._clock.time()
        return await self._postgres.serve(lambda: self._store.abandon(owner, known, now))

    async def get(self, owner: str, agent_id: str) -> Served[Agent]:
        """Raises AgentUnknown."""
        known = _known(agent_id)
        return await self._postgres.serve(lambda: self._store.get(owner, known))

    async def page(self, owner: str, page_size: int = 0, cursor: str = "") -> Served[Page[Agent]]:
        """Newest first. Raises Invalid for a size out of range or a foreign cursor."""
        size, after = checked_page_size(page_size), Cursor.parse(cursor)
        found = await self._postgres.serve(lambda: self._store.page(owner, size + 1, after))
        return found.map(lambda agents: page_of(agents, size))

    async def update(self, owner: str, agent_id: str, fields: Mapping[str, str]) -> Served[Agent]:
        """Sets the given fields; with none given it is a read. Raises AgentUnknown, Invalid."""
        if unknown := fields.keys() - CHANGEABLE:
            raise Invalid(dict.fromkeys(sorted(unknown), "is no field that can be changed"))
        texts = checked(fields)
        if not texts:
            return await self.get(owner, agent_id)
        known, now = _known(agent_id), self._clock.time()
        return await self._postgres.serve(lambda: self._store.update(owner, known, texts, now))

    async def delete(self, owner: str, agent_id: str) -> Served[None]:
        """Deletes an agent with its conversations. Raises AgentUnknown."""
        known = _known(agent_id)
        return await self._postgres.serve(lambda: self._store.delete(owner, known))


def _known(agent_id: str) -> str:
    """An id that could be one of ours; anything else names no agent."""
    if not is_id(agent_id):
        raise AgentUnknown
    return agent_id
