"""Applies queued creations of row D3 (dashboard.ai_core): hands them to AI Core, each under its fence.

AI Core claims the fence as idempotency key in the transaction that makes the agent or memory, so a creation that is
handed over twice (a call that was not answered, another instance's drain at the same time) is made once. Different
owners' creations go at once, an owner's one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from dashboard.degradation import AI_CORE
from dashboard.model import Agent, Made, Memory
from dashboard.outbound.ai_core import GrpcAiCore
from resilience import Fate, Operation, Result
from service_kit import context
from service_kit.errors import RETRYABLE, DependencyUnavailable, ErrorReason, ServiceError

CONCURRENCY = 8
"""Owners whose creations are handed over at once."""

_AGAIN = RETRYABLE | {ErrorReason.REQUEST_TIMEOUT}
"""What AI Core answers when it is not the creation that is wrong: its own database is away, or it is too busy."""


class AiQueueTarget:
    """See resilience.queue.Target. ``token_for`` makes a token with which AI Core acts for an owner; the owner's own is
    never stored."""

    def __init__(self, ai_core: GrpcAiCore, token_for: Callable[[str], str]) -> None:
        self._ai_core = ai_core
        self._token_for = token_for

    @asynccontextmanager
    async def session(self) -> AsyncIterator[_Session | None]:
        """Not exclusive: the fences make two drainers at once harmless."""
        yield _Session(self._ai_core, self._token_for)

    def is_outage(self, error: BaseException) -> bool:
        """See resilience.queue.Target."""
        return isinstance(error, ServiceError) and (not error.answered or error.reason in _AGAIN)


class _Session:
    """See resilience.queue.TargetSession. What was handed over before an exception stays, and is found again."""

    def __init__(self, ai_core: GrpcAiCore, token_for: Callable[[str], str]) -> None:
        self._ai_core = ai_core
        self._token_for = token_for
        self._buried: dict[str, str] = {}
        self._places = asyncio.Semaphore(CONCURRENCY)

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Result]:
        by_entity: dict[str, list[Operation]] = {}
        for operation in operations:
            by_entity.setdefault(operation.entity, []).append(operation)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._in_order(some)) for some in by_entity.values()]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [result for task in tasks for result in task.result()]

    async def _in_order(self, operations: Sequence[Operation]) -> list[Result]:
        results: list[Result] = []
        async with self._places:
            for operation in operations:
                results.append(await self._apply(operation))
                if results[-1].fate is Fate.REJECTED:
                    break
        return results

    async def _apply(self, operation: Operation) -> Result:
        self._act_for(operation)
        try:
            return Result(operation, Fate.APPLIED, value=await self._make(operation))
        except ServiceError as error:
            if not error.answered or error.reason in _AGAIN:
                raise
            if operation.fence in self._buried:
                return Result(operation, Fate.BURIED, self._buried[operation.fence])
            return Result(operation, Fate.REJECTED, error.reason.value)
        except (KeyError, TypeError):
            return Result(operation, Fate.REJECTED, "not a known creation")

    async def _make(self, operation: Operation) -> Agent | Memory:
        """Raises ServiceError, also when AI Core has only queued it: it is kept here until it is made."""
        made = await self._handed_over(operation)
        if made.operation_id:
            raise DependencyUnavailable("AI Core has queued it", row=AI_CORE.id)
        return made.value

    async def _handed_over(self, operation: Operation) -> Made[Agent] | Made[Memory]:
        given = operation.payload
        match operation.kind:
            case "agent.create":
                return (
                    await self._ai_core.create_agent(
                        given["id"], given["name"], given["system_prompt"], given["model"], operation.fence
                    )
                ).value
            case "memory.create":
                made = self._ai_core.create_memory(given["id"], given["text"], given["tags"], operation.fence)
                return (await made).value
            case kind:
                raise KeyError(kind)

    async def bury(self, operations: Sequence[Operation], error: str) -> None:
        for operation in operations:
            self._buried[operation.fence] = error
            self._act_for(operation)
            match operation.kind:
                case "agent.create":
                    await self._ai_core.abandon_agent(operation.fence)
                case "memory.create":
                    await self._ai_core.abandon_memory(operation.fence)

    def _act_for(self, operation: Operation) -> None:
        """The current task calls AI Core for the operation's owner, under the operation's id as request id."""
        context.bind(context.RequestContext(operation.id, self._token_for(operation.owner)))
