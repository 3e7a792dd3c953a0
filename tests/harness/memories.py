"""Memories of one user, kept and found at AI Core itself, and what its database holds of them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import asyncpg

from service_kit.tokens import TokenIssuer
from tests.harness.client import Account
from tests.harness.platform import PASSWORD, Answer, Platform, eventually

AI_CORE = "ai-core"
PATH = "/api/v1/memories"
LOCAL = "local:all-MiniLM-L6-v2-int8"
LOADED = 30.0  # s until the local model is in memory, on a machine that has other things to do

_VECTORS = """SELECT m.text, m.embedding, m.embedding_model, array_agg(v.model ORDER BY v.model) AS models
    FROM memories m LEFT JOIN memory_vectors v ON v.memory_id = m.id
    WHERE m.owner_id = $1 GROUP BY m.id ORDER BY m.created_at"""


class Keeper:
    """One user with memories."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        owner = str(uuid.uuid4())
        token = TokenIssuer(platform.stack.state.secret("jwt")).issue(owner, "session")
        self.account = Account(owner, "", PASSWORD, token)

    async def keep(self, text: str, **headers: str) -> Answer:
        """One more memory, under an idempotency key of its own unless told otherwise."""
        given = {"Idempotency-Key": uuid.uuid4().hex, **headers}
        return await self.platform.call("POST", PATH, self.account, at=AI_CORE, json={"text": text}, headers=given)

    async def find(self, query: str) -> Answer:
        """A search."""
        return await self.platform.call("GET", f"{PATH}/search", self.account, at=AI_CORE, params={"q": query})

    async def listed(self) -> Answer:
        """The newest memories."""
        return await self.platform.call("GET", f"{PATH}?limit=100", self.account, at=AI_CORE)

    async def warmed(self) -> Keeper:
        """One memory is there that has every vector: the models are loaded and well."""

        async def migrated() -> bool:
            answer = await self.listed()
            return answer.status == 200 and "stale" not in answer.body

        await eventually(migrated, "AI Core's tables are there", LOADED)
        answer = await self.keep("The bicycle is in the cellar.")
        assert answer.status == 201, answer

        async def found() -> bool:
            answer = await self.find("where is my bike")
            return answer.status == 200 and answer.body["search"] == "semantic" and bool(answer.body["items"])

        await eventually(found, "search by meaning works", LOADED)
        return self

    async def stored(self) -> list[Any]:
        """Text, state and models of each memory in the database, oldest first."""
        return await sql(self.platform, _VECTORS, self.account.id)

    async def embedded(self, models: Sequence[str], limit: float = 15.0) -> list[Any]:
        """The memories, once each of them has a vector of each of the models."""

        async def all_there() -> list[Any]:
            rows = await self.stored()
            return rows if rows and all(row["models"] == sorted(models) for row in rows) else []

        return await eventually(all_there, f"every memory has vectors of {models}", limit)


def texts(answer: Answer) -> list[str]:
    """Of the memories in an answer."""
    assert answer.status == 200, answer
    return [item["text"] for item in answer.body["items"]]


async def sql(platform: Platform, statement: str, *values: Any) -> list[Any]:
    """A statement in AI Core's database, past everything."""
    connection = await asyncpg.connect(platform.stack.database_url("ai_core"), timeout=5)
    try:
        return list(await connection.fetch(statement, *values, timeout=20))
    finally:
        await connection.close(timeout=5)
