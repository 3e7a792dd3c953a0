"""Agents and conversations in PostgreSQL. Every statement names the owner: there is no way to reach another's agent."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    Cursor,
    IdTaken,
    KeyReused,
    TooManyAgents,
    Turn,
)
from ai_core.outbound.engine import reading, writing
from ai_core.outbound.keys import Keys, moment, moment_us
from ai_core.outbound.tables import agent_creations, agents, conversations

_KEYS = Keys(agent_creations)


class PostgresAgents:
    """The agent store; ``engine`` is the bounded one of ``outbound.engine``."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def ping(self) -> None:
        """Raises StoreUnavailable unless the database answers."""
        async with reading(self._engine) as connection:
            await connection.execute(sa.text("SELECT 1"))

    async def create(self, agent: Agent, key: str, fingerprint: str) -> Agent:
        """Stores a new agent, once per owner and key."""
        async with writing(self._engine) as connection:
            if key and not await _KEYS.claim(connection, agent.owner_id, key, agent.id, fingerprint, agent.created_at):
                return await _made_before(connection, agent.owner_id, key, fingerprint)
            return await _insert(connection, agent)

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
        if after is not None:
            place = sa.tuple_(sa.literal(moment_us(after.created_us), agents.c.created_at.type), _id(after.id))
            query = query.where(sa.tuple_(agents.c.created_at, agents.c.id) < place)
        query = query.order_by(agents.c.created_at.desc(), agents.c.id.desc()).limit(limit)
        async with reading(self._engine) as connection:
            return [_agent(row) for row in await connection.execute(query)]

    async def update(self, owner_id: str, agent_id: str, fields: Mapping[str, str], at: float) -> Agent:
        """Sets the given fields."""
        change = agents.update().where(*_own(owner_id, agent_id)).values({**fields, "updated_at": moment(at)})
        async with writing(self._engine) as connection:
            row = (await connection.execute(change.returning(agents))).one_or_none()
        if row is None:
            raise AgentUnknown
        return _agent(row)

    async def delete(self, owner_id: str, agent_id: str) -> None:
        """Deletes an agent; its conversations go with it."""
        async with writing(self._engine) as connection:
            deleted = await connection.execute(agents.delete().where(*_own(owner_id, agent_id)))
        if deleted.rowcount == 0:
            raise AgentUnknown

    async def conversation(self, owner_id: str, agent_id: str, conversation_id: str) -> tuple[Agent, list[Turn]]:
        """The agent and a conversation's turns, in one trip."""
        same = sa.and_(conversations.c.agent_id == agents.c.id, conversations.c.id == conversation_id)
        query = sa.select(agents, conversations.c.turns).select_from(agents.outerjoin(conversations, same))
        async with reading(self._engine) as connection:
            row = (await connection.execute(query.where(*_own(owner_id, agent_id)))).one_or_none()
        if row is None:
            raise AgentUnknown
        return _agent(row), [Turn(turn["role"], turn["content"]) for turn in row.turns or ()]

    async def remember(self, agent: Agent, conversation_id: str, turns: Sequence[Turn], at: float) -> None:
        """Appends turns; concurrent exchanges of one conversation are both kept."""
        added = [{"role": turn.role, "content": turn.content} for turn in turns]
        values = {"agent": agent.id, "owner": agent.owner_id, "id": conversation_id, "at": moment(at)}
        async with writing(self._engine) as connection:
            begun = await connection.execute(_APPEND, {**values, "turns": json.dumps(added), "keep": HISTORY_TURNS})
            if begun.scalar_one_or_none():
                await connection.execute(_FORGET_OLD, {"agent": agent.id, "keep": CONVERSATIONS_PER_AGENT})


_APPEND = sa.text("""
    INSERT INTO conversations AS c (agent_id, id, turns, updated_at)
    SELECT a.id, CAST(:id AS uuid), CAST(:turns AS jsonb), CAST(:at AS timestamptz) FROM agents a
    WHERE a.id = CAST(:agent AS uuid) AND a.owner_id = :owner
    ON CONFLICT (agent_id, id) DO UPDATE SET updated_at = excluded.updated_at, turns = (
        SELECT jsonb_agg(turn ORDER BY place) FROM (
            SELECT turn, place FROM jsonb_array_elements(c.turns || excluded.turns) WITH ORDINALITY AS t (turn, place)
            ORDER BY place DESC LIMIT CAST(:keep AS bigint)
        ) AS newest
    )
    RETURNING xmax = 0
""")
"""True for a new conversation: a row that was inserted, not updated, has no deleting transaction."""

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


def _id(text: str) -> sa.BindParameter[str]:
    return sa.literal(text, agents.c.id.type)
