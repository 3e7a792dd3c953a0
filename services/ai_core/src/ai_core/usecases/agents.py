"""Agents: making, reading, listing, changing and deleting one's own, also without the database (row A1)."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from ai_core.degradation import REDIS_QUEUE
from ai_core.model import (
    AGENTS_PER_OWNER,
    Agent,
    AgentUnknown,
    Cursor,
    Invalid,
    Page,
    TooManyAgents,
    checked,
    checked_key,
    checked_page_size,
    chosen_id,
    fingerprint,
    is_id,
    page_of,
)
from ai_core.ports import AgentCopies, AgentStore
from ai_core.usecases.waiting import agent_after, agent_made_by, agents_changed, overlaid
from ai_core.usecases.writes import Made, Writes, made_id
from resilience import MISSING, Clock, Operation, RowPolicy, Rung, Served, WriteRefused

T = TypeVar("T")

CHANGEABLE = frozenset({"name", "system_prompt", "model"})


def agents_of(owner: str) -> str:
    """The ordering unit of what an owner does with agents and conversations."""
    return f"agents:{owner}"


class Agents:
    """Each method acts for ``owner``, who sees no other agents than the own ones."""

    def __init__(
        self, store: AgentStore, copies: AgentCopies, postgres: RowPolicy, writes: Writes, clock: Clock
    ) -> None:
        self._store = store
        self._copies = copies
        self._postgres = postgres
        self._writes = writes
        self._clock = clock

    async def create(
        self, owner: str, name: str, system_prompt: str, model: str, key: str = "", agent_id: str = ""
    ) -> Served[Made[Agent]]:
        """A new agent, under ``agent_id`` if given; a repeated ``key`` gives the one made the first time.

        Raises Invalid, KeyReused, IdTaken, TooManyAgents, WriteFailed, WriteRefused.
        """
        texts = checked({"name": name, "system_prompt": system_prompt, "model": model})
        checked({"idempotency_key": key})
        request = fingerprint({**texts, "id": agent_id} if agent_id else texts)
        given = {**texts, "key": key}
        operation = self._writes.operation("agent.create", agents_of(owner), owner, given, key=key, request=request)
        operation.payload["id"] = chosen_id(agent_id) if agent_id else made_id(operation.id)
        waiting = [one for one in await self._writes.pending(agents_of(owner)) if one.kind == "agent.create"]
        if len(waiting) >= AGENTS_PER_OWNER and all(one.id != operation.id for one in waiting):
            raise TooManyAgents  # before they fill the queue

        async def promised(queued: Operation) -> Agent:
            return agent_made_by(queued)

        return await self._made(await self._writes.make(operation, promised))

    async def abandon(self, owner: str, key: str) -> Served[None]:
        """No later creation with this key makes an agent; one made before stays. Raises Invalid."""
        known, now = checked_key(key), self._clock.time()
        return await self._postgres.serve(lambda: self._store.abandon(owner, known, now))

    async def get(self, owner: str, agent_id: str) -> Served[Agent]:
        """With the owner's waiting changes in it. Raises AgentUnknown."""
        known = known_id(agent_id)
        waiting = await self._writes.pending(agents_of(owner))
        rungs = (*self._copies.agent(owner, known), only_waiting(waiting, known, None))

        async def read() -> Agent | None:
            agent = await self._store.get(owner, known)
            self._copies.keep(agent)
            return agent

        served = await found_or_waiting(self._postgres, read, rungs, waiting, known, None)
        return with_waiting(served, agent_after(served.value, waiting, known))

    async def page(self, owner: str, page_size: int = 0, cursor: str = "") -> Served[Page[Agent]]:
        """Newest first, with the owner's waiting changes. Raises Invalid for a wrong size or a foreign cursor."""
        size, after = checked_page_size(page_size), Cursor.parse(cursor)
        waiting = await self._writes.pending(agents_of(owner))

        async def read() -> Page[Agent]:
            since = self._clock.time()
            found = await self._store.page(owner, size + 1, after)
            complete = len(found) <= size
            self._copies.keep_page(owner, found[:size], complete=complete, since=since, after=after)
            return page_of(found, size)

        rungs = (*self._copies.page(owner, size, after), _only_new(waiting))
        served = await self._postgres.serve(read, *rungs)
        changes = agents_changed(served.value.items, waiting)
        page = overlaid(served.value, changes, size, after)
        return Served(page, served.degradations, served.as_of, pending=page != served.value)

    async def update(
        self, owner: str, agent_id: str, fields: Mapping[str, str], key: str = ""
    ) -> Served[Made[Agent | None]]:
        """Sets the given fields; with none given it is a read. None: queued, and not known here what it will be.

        Raises AgentUnknown, Invalid, KeyReused, WriteFailed, WriteRefused.
        """
        if unknown := fields.keys() - CHANGEABLE:
            raise Invalid(dict.fromkeys(sorted(unknown), "is no field that can be changed"))
        texts = checked(fields)
        if not texts:
            return (await self.get(owner, agent_id)).map(Made)
        operation = await self._change("agent.update", owner, agent_id, {"fields": texts}, key)

        async def promised(queued: Operation) -> Agent | None:
            return await self._as_it_will_be(owner, queued)

        return await self._made(await self._changed(operation, promised))

    async def delete(self, owner: str, agent_id: str, key: str = "") -> Served[Made[None]]:
        """Deletes an agent with its conversations. Raises AgentUnknown, KeyReused, WriteFailed, WriteRefused."""
        operation = await self._change("agent.delete", owner, agent_id, {}, key)

        async def promised(_: Operation) -> None:
            return None

        served = await self._changed(operation, promised)
        if not served.value.operation_id:
            await self._copies.gone(owner, agent_id)
        return served

    async def _change(self, kind: str, owner: str, agent_id: str, given: Mapping[str, Any], key: str) -> Operation:
        """Raises AgentUnknown when a deletion of the agent waits already."""
        checked({"idempotency_key": key})
        known = known_id(agent_id)
        payload = {**given, "id": known}
        request = fingerprint({"kind": kind, **payload})
        operation = self._writes.operation(kind, agents_of(owner), owner, payload, key=key, request=request)
        waiting = await self._writes.pending(agents_of(owner))
        gone = [one.id for one in waiting if one.kind == "agent.delete" and one.payload["id"] == known]
        if gone and operation.id not in gone:
            raise AgentUnknown
        return operation

    async def _changed(self, operation: Operation, promised: Callable[[Operation], Awaitable[T]]) -> Served[Made[T]]:
        """Raises WriteRefused when the agent is still to be made, and waits in a queue that cannot be asked."""
        try:
            return await self._writes.make(operation, promised)
        except AgentUnknown:
            waiting = await self._writes.pending(operation.entity)
            if waiting.certain or not is_waiting(waiting, operation.payload["id"]):
                raise
            raise WriteRefused(full=False, retry_after=self._postgres.row.probe_interval) from None

    async def _as_it_will_be(self, owner: str, operation: Operation) -> Agent | None:
        try:
            return (await self.get(owner, operation.payload["id"])).value
        except Exception:  # noqa: BLE001 - the change is accepted, whatever can be read now
            return None

    async def _made(self, served: Served[Made[Any]]) -> Served[Made[Any]]:
        if not served.value.operation_id:
            await self._copies.changed([served.value.value])
        return served


def known_id(agent_id: str) -> str:
    """An id that could be one of ours. Raises AgentUnknown: anything else names no agent."""
    if not is_id(agent_id):
        raise AgentUnknown
    return agent_id


def _only_new(waiting: Sequence[Operation]) -> Rung[Page[Agent]]:
    """Without the database and without a copy of the list there are still the agents that wait."""

    async def nothing_else(_: BaseException) -> Any:
        return Page([]) if any(one.kind == "agent.create" for one in waiting) else MISSING

    return Rung(REDIS_QUEUE, nothing_else)


def only_waiting(waiting: Sequence[Operation], agent_id: str, nothing: Any) -> Rung[Any]:
    """Without the database and without a copy there is still what waits in the queue."""

    async def made_later(_: BaseException) -> Any:
        return nothing if is_waiting(waiting, agent_id) else MISSING

    return Rung(REDIS_QUEUE, made_later)


async def found_or_waiting(
    postgres: RowPolicy,
    read: Callable[[], Awaitable[Any]],
    rungs: Sequence[Rung[Any]],
    waiting: Sequence[Operation],
    agent_id: str,
    nothing: Any,
) -> Served[Any]:
    """What is read, or ``nothing`` when there is no agent yet but its creation waits. Raises AgentUnknown."""
    try:
        return await postgres.serve(read, *rungs)
    except AgentUnknown:
        if not is_waiting(waiting, agent_id):
            raise
        return Served(nothing, (postgres.degradation(REDIS_QUEUE),))


def is_waiting(waiting: Sequence[Operation], agent_id: str) -> bool:
    """Whether the creation of an agent is among the waiting writes."""
    return any(one.kind == "agent.create" and one.payload["id"] == agent_id for one in waiting)


def with_waiting(served: Served[Agent | None], agent: Agent | None) -> Served[Agent]:
    """The agent after the waiting writes, marked as pending when they change it. Raises AgentUnknown."""
    if agent is None:
        raise AgentUnknown
    return Served(agent, served.degradations, served.as_of, pending=agent != served.value)
