"""Agents and conversations in PostgreSQL. Every statement names the owner: there is no way to reach another's agent."""

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ai_core.model import (
    AGENTS_PER_OWNER,
    CONVERSATIONS_PER_AGENT,
    HISTORY_TURNS,
    Agent,
    AgentUnknown,
    Conversation,
    ConversationUnknown,
    Cursor,
    IdTaken,
    KeyReused,
    TooManyAgents,
    Turn,
)
from ai_core.outbound.engine import reading, writing
from ai_core.outbound.keys import Keys, moment, moment_us
from ai_core.outbound.queue_target import Applier, Appliers
from ai_core.outbound.tables import agent_creations, agents, conversations
from ai_core.usecases.waiting import agent_made_by
from resilience import Operation

_KEYS = Keys(agent_creations)


class PostgresAgents:
    """The agent store; ``engine`` is the bounded one of ``outbound.engine``."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def ping(self) -> None:
        """Raises StoreUnavailable unless the database answers."""
        async with reading(self._engine) as connection:
            await connection.execute(sa.text("SELECT 1"))

    async def abandon(self, owner_id: str, key: str, at: float) -> None:
        """No later creation with this key makes an agent."""
        async with writing(self._engine) as connection:
            await _KEYS.abandon(connection, owner_id, key, at)

    async def get(self, owner_id: str, agent_id: str) -> Agent:
        """One agent of the owner."""
        async with reading(self._engine) as connection:
            return await _one(connection, owner_id, agent_id)

    async def page(self, owner_id: str, limit: int, after: Cursor | None) -> list[Agent]:
        """The newest agents, or those after a cursor."""
        query = agents.select().where(agents.c.owner_id == owner_id)
        query = _after(query, agents.c.created_at, agents.c.id, after).limit(limit)
        async with reading(self._engine) as connection:
            return [_agent(row) for row in await connection.execute(query)]

    async def opened(self, owner_id: str, agent_id: str, conversation_id: str) -> tuple[Agent, Conversation | None]:
        """The agent and a conversation, in one trip."""
        said = sa.and_(conversations.c.agent_id == agents.c.id, conversations.c.id == conversation_id, _SHOWN)
        columns = conversations.c.turns, conversations.c.updated_at.label("said_at")
        query = sa.select(agents, *columns).select_from(agents.outerjoin(conversations, said))
        async with reading(self._engine) as connection:
            row = (await connection.execute(query.where(*_own(owner_id, agent_id)))).one_or_none()
        if row is None:
            raise AgentUnknown
        return _agent(row), None if row.turns is None else _conversation(conversation_id, row.turns, row.said_at)

    async def conversations(self, owner_id: str, agent_id: str, limit: int, after: Cursor | None) -> list[Conversation]:
        """The conversations of the owner's agent that were used last, or those after a cursor."""
        query = sa.select(conversations.c.id, conversations.c.updated_at)
        query = query.where(conversations.c.agent_id == agent_id, _SHOWN)
        query = _after(query, conversations.c.updated_at, conversations.c.id, after).limit(limit)
        async with reading(self._engine) as connection:
            await _one(connection, owner_id, agent_id)
            return [_conversation(row.id, (), row.updated_at) for row in await connection.execute(query)]


async def _create(connection: AsyncConnection, operation: Operation, _: bool) -> Agent:
    agent, key, request = agent_made_by(operation), operation.payload.get("key", ""), operation.fingerprint
    if key and not await _KEYS.claim(connection, agent.owner_id, key, agent.id, request, agent.created_at):
        return await _made_before(connection, agent.owner_id, key, request)
    return await _insert(connection, agent)


async def _created(connection: AsyncConnection, operation: Operation) -> Agent:
    """Raises KeyReused when it has been deleted since."""
    try:
        return await _one(connection, operation.owner, operation.payload["id"])
    except AgentUnknown:
        raise KeyReused from None


async def _update(connection: AsyncConnection, operation: Operation, unordered: bool) -> Agent:
    given, at = operation.payload, moment(operation.payload["at"])
    later = sa.func.greatest(agents.c.updated_at + _TICK, sa.literal(at, agents.c.updated_at.type))
    change = agents.update().where(*_own(operation.owner, given["id"])).values({**given["fields"], "updated_at": later})
    if unordered:
        change = change.values(unordered_at=sa.func.greatest(agents.c.unordered_at, at))
    if operation.accepted_at:
        change = change.where(sa.or_(agents.c.unordered_at.is_(None), agents.c.unordered_at < at))
    row = (await connection.execute(change.returning(agents))).one_or_none()
    return await _updated(connection, operation) if row is None else _agent(row)


async def _updated(connection: AsyncConnection, operation: Operation) -> Agent:
    """As it is: changed by this operation, or by one that has overtaken it."""
    return await _one(connection, operation.owner, operation.payload["id"])


async def _delete(connection: AsyncConnection, operation: Operation, _: bool) -> None:
    """Of a queued one that finds nothing the wish is fulfilled."""
    deleted = await connection.execute(agents.delete().where(*_own(operation.owner, operation.payload["id"])))
    if deleted.rowcount == 0 and not operation.accepted_at:
        raise AgentUnknown


async def _append(connection: AsyncConnection, operation: Operation, _: bool) -> Conversation | None:
    """None when the agent is gone, or the conversation was deleted after this was said."""
    given = operation.payload
    values = {"agent": given["agent"], "owner": operation.owner, "id": given["id"], "at": moment(given["at"])}
    turns = [{**turn, "at": given["at"]} for turn in given["turns"]]
    appended = await connection.execute(_APPEND, {**values, "turns": json.dumps(turns), "keep": HISTORY_TURNS})
    row = appended.one_or_none()
    if row is None:
        return None
    if row.begun:
        await connection.execute(_FORGET_OLD, {"agent": given["agent"], "keep": CONVERSATIONS_PER_AGENT})
    return _conversation(given["id"], row.turns, row.updated_at)


async def _forget(connection: AsyncConnection, operation: Operation, unordered: bool) -> None:
    """Unordered it leaves a mark, so that what waits in the queue does not bring the conversation back."""
    given, at = operation.payload, moment(operation.payload["at"])
    await _one(connection, operation.owner, given["agent"])
    if unordered:
        await connection.execute(_MARK_DELETED, {"agent": given["agent"], "id": given["id"], "at": at})
        await connection.execute(_FORGET_OLD, {"agent": given["agent"], "keep": CONVERSATIONS_PER_AGENT})
        return
    same = conversations.c.agent_id == given["agent"], conversations.c.id == given["id"]
    if (await connection.execute(conversations.delete().where(*same))).rowcount == 0 and not operation.accepted_at:
        raise ConversationUnknown


APPLIERS: Appliers = {
    "agent.create": Applier(_create, _created),
    "agent.update": Applier(_update, _updated),
    "agent.delete": Applier(_delete),
    "conversation.append": Applier(_append),
    "conversation.delete": Applier(_forget),
}

_SHOWN = conversations.c.deleted_at.is_(None)
_TICK = sa.text("interval '1 microsecond'")  # so that times of changes only grow: they are the versions of copies

# Turns are in the order in which their exchanges began, whichever ended first, and however late they come.
_APPEND = sa.text("""
    INSERT INTO conversations AS c (agent_id, id, turns, updated_at)
    SELECT a.id, CAST(:id AS uuid), CAST(:turns AS jsonb), CAST(:at AS timestamptz) FROM agents a
    WHERE a.id = CAST(:agent AS uuid) AND a.owner_id = :owner
    ON CONFLICT (agent_id, id) DO UPDATE SET deleted_at = NULL,
        updated_at = greatest(c.updated_at + interval '1 microsecond', excluded.updated_at),
        turns = (
            SELECT jsonb_agg(turn ORDER BY said NULLS FIRST, place) FROM (
                SELECT turn, place, CAST(turn->>'at' AS float8) AS said FROM jsonb_array_elements(
                    CASE WHEN c.deleted_at IS NULL THEN c.turns ELSE CAST('[]' AS jsonb) END || excluded.turns
                ) WITH ORDINALITY AS t (turn, place)
                ORDER BY said DESC NULLS LAST, place DESC LIMIT CAST(:keep AS bigint)
            ) AS newest
        )
    WHERE c.deleted_at IS NULL OR c.deleted_at < excluded.updated_at
    RETURNING turns, updated_at, xmax = 0 AS begun
""")
"""``begun``: a row that was inserted, not updated, has no deleting transaction."""

_MARK_DELETED = sa.text("""
    INSERT INTO conversations AS c (agent_id, id, turns, updated_at, deleted_at)
    SELECT CAST(:agent AS uuid), CAST(:id AS uuid), CAST('[]' AS jsonb), at, at
    FROM (SELECT CAST(:at AS timestamptz) AS at) AS call
    ON CONFLICT (agent_id, id) DO UPDATE SET turns = excluded.turns,
        deleted_at = greatest(c.deleted_at, excluded.deleted_at),
        updated_at = greatest(c.updated_at, excluded.updated_at)
""")

_FORGET_OLD = sa.text("""
    DELETE FROM conversations WHERE agent_id = CAST(:agent AS uuid) AND id IN (
        SELECT id FROM conversations WHERE agent_id = CAST(:agent AS uuid)
        ORDER BY updated_at DESC, id OFFSET CAST(:keep AS bigint)
    )
""")


async def _made_before(connection: AsyncConnection, owner_id: str, key: str, fingerprint: str) -> Agent:
    made_id = await _KEYS.made(connection, owner_id, key, fingerprint)
    try:
        return await _one(connection, owner_id, made_id)
    except AgentUnknown:
        raise KeyReused from None


async def _insert(connection: AsyncConnection, agent: Agent) -> Agent:
    held = sa.select(sa.func.count()).select_from(agents).where(agents.c.owner_id == agent.owner_id)
    if (await connection.execute(held)).scalar_one() >= AGENTS_PER_OWNER:
        raise TooManyAgents
    values = {
        "id": agent.id,
        "owner_id": agent.owner_id,
        "name": agent.name,
        "system_prompt": agent.system_prompt,
        "model": agent.model,
        "created_at": moment(agent.created_at),
        "updated_at": moment(agent.updated_at),
    }
    statement = insert(agents).values(values).on_conflict_do_nothing().returning(agents.c.id)
    inserted = (await connection.execute(statement)).one_or_none()
    return agent if inserted else await _there(connection, agent)


async def _there(connection: AsyncConnection, agent: Agent) -> Agent:
    """What has the id already: fine when it is this agent, made by a try whose answer was lost."""
    try:
        there = await _one(connection, agent.owner_id, agent.id)
    except AgentUnknown:
        raise IdTaken from None
    if replace(there, created_at=agent.created_at, updated_at=agent.updated_at) != agent:
        raise IdTaken
    return there


async def _one(connection: AsyncConnection, owner_id: str, agent_id: str) -> Agent:
    row = (await connection.execute(agents.select().where(*_own(owner_id, agent_id)))).one_or_none()
    if row is None:
        raise AgentUnknown
    return _agent(row)


def _own(owner_id: str, agent_id: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return agents.c.id == agent_id, agents.c.owner_id == owner_id


def _agent(row: sa.Row[Any]) -> Agent:
    created, updated = row.created_at.timestamp(), row.updated_at.timestamp()
    return Agent(row.id, row.owner_id, row.name, row.system_prompt, row.model, created, updated)


def _conversation(conversation_id: str, turns: Iterable[Any], updated_at: datetime) -> Conversation:
    said = tuple(Turn(turn["role"], turn["content"], turn.get("at", 0.0)) for turn in turns)
    return Conversation(conversation_id, updated_at.timestamp(), said)


def _after(query: sa.Select[Any], time: sa.Column[Any], ident: sa.Column[Any], after: Cursor | None) -> sa.Select[Any]:
    """Newest first, from behind a cursor on."""
    if after is not None:
        place = sa.tuple_(sa.literal(moment_us(after.created_us), time.type), sa.literal(after.id, ident.type))
        query = query.where(sa.tuple_(time, ident) < place)
    return query.order_by(time.desc(), ident.desc())
