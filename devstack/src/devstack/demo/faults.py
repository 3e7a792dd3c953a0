"""How the tour breaks a part, and mends it: a component as a process, or what has no process of its own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, Protocol

import asyncpg

from devstack.stack import Healed

Fault = Literal["kill", "freeze", "drop"]
FAULTS: dict[Fault, str] = {
    "kill": "killed (SIGKILL)",
    "freeze": "frozen (SIGSTOP)",
    "drop": "dropped (DROP EXTENSION vector)",
}
DROP: Fault = "drop"
AI_CORE = "ai_core"
LIMIT = 10.0  # s for a statement


class Platform(Protocol):
    """What the tour needs of a platform: processes (``Stack``) or containers (``Containers``)."""

    @property
    def units(self) -> Collection[str]:
        """The components that can be broken."""

    def url(self, name: str) -> str:
        """Where a client finds a service."""

    def database_url(self, database: str) -> str:
        """One of the databases."""

    async def kill(self, name: str) -> None:
        """It is gone at once."""

    async def freeze(self, name: str) -> None:
        """It accepts, and never answers."""

    async def heal(self, name: str) -> Healed:
        """Undoes it, and waits until the component accepts."""


async def inflict(stack: Platform, fault: Fault, component: str) -> None:
    """Breaks a component. ``drop`` takes pgvector away, and sees that nobody can create it again."""
    if fault == DROP:
        await _sql(stack, "ALTER SYSTEM SET extension_control_path = '/nowhere'", "SELECT pg_reload_conf()")
        await _sql(stack, "DROP EXTENSION vector CASCADE")
    else:
        await getattr(stack, fault)(component)


async def mend(stack: Platform, fault: Fault, component: str) -> Healed:
    """Undoes it. What was dropped may be created again; that is the service's own work."""
    if fault == DROP:
        await _sql(stack, "ALTER SYSTEM RESET extension_control_path", "SELECT pg_reload_conf()")
        return Healed(component, ("can be created again",), 0.0, accepts=True)
    return await stack.heal(component)


async def _sql(stack: Platform, *statements: str) -> None:
    connection = await asyncpg.connect(stack.database_url(AI_CORE), timeout=LIMIT)
    try:
        for statement in statements:
            await connection.execute(statement, timeout=LIMIT)
    finally:
        await connection.close(timeout=LIMIT)
