"""The AI features, also while AI Core is away (row D3, dashboard.ai_core)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from dashboard.degradation import ORIGINAL_TEXT, REDIS_QUEUE, TEXT_ONLY
from dashboard.model import Agent, Conversation, Found, Made, Memory, Page, Reply, Speech, Translation
from dashboard.ports import AiCopies, AiCore, Announce, ReplyStream, silent
from dashboard.usecases.creations import Creations
from resilience import MISSING, Bulkhead, Operation, RowPolicy, Rung, Served

T = TypeVar("T")

STREAMS = 64
"""Answers that one instance passes on as they come, at a time."""


def announce_creation(announce: Announce, operation: Operation) -> None:
    """Tells of an agent that was made; the operation's id makes doubles known. Memories are nobody's business."""
    if operation.kind == "agent.create":
        _announce(announce, "created", operation.owner, operation.payload["id"], operation.id)


def _announce(announce: Announce, what: str, owner: str, agent_id: str, event_id: str | None = None) -> None:
    data = {"agent_id": agent_id, "owner_id": owner}
    announce(f"agent.{what}", f"agent:{agent_id}", data, event_id=event_id)


class Agents:
    """Agents and chat; each method acts for ``owner``, the user of the current request."""

    def __init__(
        self,
        ai_core: AiCore,
        policy: RowPolicy,
        creations: Creations,
        copies: AiCopies,
        announce: Announce = silent,
        places: Bulkhead | None = None,
    ) -> None:
        self._ai_core = ai_core
        self._policy = policy
        self._places = places or Bulkhead(policy.row.id, STREAMS, 0)
        self._creations = creations
        self._copies = copies
        self._announce = announce

    async def create(self, owner: str, name: str, prompt: str, model: str, key: str | None) -> Served[Made[Agent]]:
        """A new agent. Raises KeyReused, WriteFailed, WriteRefused."""
        payload = {"name": name, "system_prompt": prompt, "model": model}
        operation = self._creations.operation("agent.create", agents_of(owner), owner, payload, key)

        async def direct() -> Served[Made[Agent]]:
            served = await self._ai_core.create_agent(operation.payload["id"], name, prompt, model, operation.id)
            if not served.value.operation_id:
                self._copies.keep_agent(owner, served.value.value)
                announce_creation(self._announce, operation)
            return _promise(served)

        return await self._creations.make(operation, direct, _queued_agent)

    async def get(self, owner: str, agent_id: str) -> Served[Agent]:
        """One of the owner's agents, also one that is still to be made."""
        for operation in await self._creations.waiting(agents_of(owner), limit=1000):
            if operation.payload.get("id") == agent_id:
                return Served(_queued_agent(operation), (self._policy.degradation(REDIS_QUEUE),), pending=True)

        async def read() -> Served[Agent]:
            served = await self._ai_core.agent(agent_id)
            if _is_live(served):
                self._copies.keep_agent(owner, served.value)
            return served

        return await self._policy.serve(read, *self._copies.agent(owner, agent_id))

    async def page(self, owner: str, limit: int, cursor: str | None) -> Served[Page[Agent]]:
        """The owner's agents, newest first; on the first page also those that are still to be made."""

        async def read() -> Served[Page[Agent]]:
            served = await self._ai_core.agents(limit, cursor)
            if cursor is None and _is_live(served):
                self._copies.keep_agents(owner, limit, served.value)
            return served

        if cursor is not None:
            return await self._policy.serve(read)
        waiting = [_queued_agent(one) for one in await self._creations.waiting(agents_of(owner), limit)]
        served = await self._policy.serve(read, *self._copies.agents(owner, limit), _only(waiting))
        return _with_waiting(served, waiting)

    async def change(self, owner: str, agent_id: str, fields: dict[str, str]) -> Served[Made[Agent | None]]:
        """Changes the given fields. None: AI Core has queued it, and does not know what it will be."""
        served: Served[Made[Agent | None]] = await self._policy.serve(
            lambda: self._ai_core.change_agent(agent_id, fields)
        )
        if not served.value.operation_id and served.value.value is not None:
            self._copies.keep_agent(owner, served.value.value)
            _announce(self._announce, "changed", owner, agent_id)
        return _promise(served)

    async def delete(self, owner: str, agent_id: str) -> Served[Made[None]]:
        """Deletes an agent."""
        served: Served[Made[None]] = await self._policy.serve(lambda: self._ai_core.delete_agent(agent_id))
        await self._copies.forget_agent(owner, agent_id)
        if not served.value.operation_id:
            _announce(self._announce, "deleted", owner, agent_id)
        return _promise(served)

    async def chat(self, agent_id: str, message: str, conversation_id: str) -> Served[Reply]:
        """The agent's answer: nothing can stand in for that."""
        return await self._policy.serve(lambda: self._ai_core.chat(agent_id, message, conversation_id))

    async def stream(
        self, agent_id: str, message: str, conversation_id: str
    ) -> Served[AbstractAsyncContextManager[ReplyStream]]:
        """The agent's answer as it comes, once it has begun. To be entered, or its place is never given back.

        Streams have places of their own: however many go on for however long, all other calls keep theirs.
        """
        await self._places.acquire()
        try:
            served: Served[ReplyStream] = await self._policy.serve(
                lambda: self._ai_core.chat_stream(agent_id, message, conversation_id)
            )
        except BaseException:
            self._places.release()
            raise
        return served.map(self._placed)

    @asynccontextmanager
    async def _placed(self, stream: ReplyStream) -> AsyncIterator[ReplyStream]:
        try:
            async with stream:
                yield stream
        finally:
            self._places.release()


class Conversations:
    """What was said to an agent, by the user of the current request; only AI Core has it."""

    def __init__(self, ai_core: AiCore, policy: RowPolicy) -> None:
        self._ai_core = ai_core
        self._policy = policy

    async def page(self, agent_id: str, limit: int, cursor: str | None) -> Served[Page[Conversation]]:
        """The conversations with an agent, the one that was used last first."""
        return await self._policy.serve(lambda: self._ai_core.conversations(agent_id, limit, cursor))

    async def get(self, agent_id: str, conversation_id: str) -> Served[Conversation]:
        """What was said in a conversation."""
        return await self._policy.serve(lambda: self._ai_core.conversation(agent_id, conversation_id))

    async def delete(self, agent_id: str, conversation_id: str) -> Served[Made[None]]:
        """Forgets a conversation."""
        served: Served[Made[None]] = await self._policy.serve(
            lambda: self._ai_core.delete_conversation(agent_id, conversation_id)
        )
        return _promise(served)


class Memories:
    """Texts to be remembered; each method acts for ``owner``, the user of the current request."""

    def __init__(self, ai_core: AiCore, policy: RowPolicy, creations: Creations, copies: AiCopies) -> None:
        self._ai_core = ai_core
        self._policy = policy
        self._creations = creations
        self._copies = copies

    async def create(self, owner: str, text: str, tags: Sequence[str], key: str | None) -> Served[Made[Memory]]:
        """A memory that is kept from now on, whether AI Core has got it already or not.

        Raises KeyReused, WriteFailed, WriteRefused.
        """
        payload = {"text": text, "tags": list(dict.fromkeys(tags))}
        operation = self._creations.operation("memory.create", memories_of(owner), owner, payload, key)

        async def direct() -> Served[Made[Memory]]:
            made = self._ai_core.create_memory(operation.payload["id"], text, payload["tags"], operation.id)
            return _promise(await made)

        return await self._creations.make(operation, direct, _queued_memory)

    async def page(self, owner: str, limit: int, cursor: str | None) -> Served[Page[Memory]]:
        """The owner's memories, newest first; on the first page also those that AI Core has not got yet."""

        async def read() -> Served[Page[Memory]]:
            served = await self._ai_core.memories(limit, cursor)
            if cursor is None and _is_live(served):
                self._copies.keep_memories(owner, limit, served.value)
            return served

        if cursor is not None:
            return await self._policy.serve(read)
        waiting = [_queued_memory(one) for one in await self._creations.waiting(memories_of(owner), limit)]
        served = await self._policy.serve(read, *self._copies.memories(owner, limit), _only(waiting))
        return _with_waiting(served, waiting)

    async def search(self, query: str, limit: int) -> Served[Found]:
        """The memories that fit a query; only AI Core can tell."""
        return await self._policy.serve(lambda: self._ai_core.search(query, limit))

    async def delete(self, owner: str, memory_id: str) -> Served[Made[None]]:
        """Forgets a memory."""
        served: Served[Made[None]] = await self._policy.serve(lambda: self._ai_core.delete_memory(memory_id))
        await self._copies.forget_memories(owner)
        return _promise(served)


class Language:
    """Translation and speech: the text itself is what is served when nothing else is."""

    def __init__(self, ai_core: AiCore, policy: RowPolicy) -> None:
        self._ai_core = ai_core
        self._policy = policy

    async def translate(self, text: str, target: str, source: str) -> Served[Translation]:
        """The text in the target language, or as it came."""

        async def original(_: BaseException) -> Translation:
            return Translation(text, translated=False)

        return await self._policy.serve(
            lambda: self._ai_core.translate(text, target, source), Rung(ORIGINAL_TEXT, original)
        )

    async def speak(self, text: str, voice: str) -> Served[Speech]:
        """The text spoken, or alone."""

        async def silent(_: BaseException) -> Speech:
            return Speech(text)

        return await self._policy.serve(lambda: self._ai_core.speak(text, voice), Rung(TEXT_ONLY, silent))


def agents_of(owner: str) -> str:
    """The ordering unit of a user's new agents."""
    return f"agents:{owner}"


def memories_of(owner: str) -> str:
    """The ordering unit of a user's new memories."""
    return f"memories:{owner}"


def _is_live(served: Served[Any]) -> bool:
    """Whether it is what AI Core's own database holds now: copies are made of nothing else."""
    return served.as_of is None and not served.pending and not served.degraded


def _promise(served: Served[Made[T]]) -> Served[Made[T]]:
    """What AI Core has queued is pending."""
    if not served.value.operation_id:
        return served
    return Served(served.value, served.degradations, served.as_of, pending=True)


def _queued_agent(operation: Operation) -> Agent:
    given, at = operation.payload, operation.accepted_at
    return Agent(given["id"], given["name"], given["system_prompt"], given["model"], at, at, pending=True)


def _queued_memory(operation: Operation) -> Memory:
    given = operation.payload
    return Memory(given["id"], given["text"], tuple(given["tags"]), "pending", operation.accepted_at, pending=True)


def _only(waiting: Sequence[T]) -> Rung[Page[T]]:
    """Without AI Core and without a copy there is still what waits in the queue."""

    async def nothing_else(_: BaseException) -> Any:
        return Page([]) if waiting else MISSING

    return Rung(REDIS_QUEUE, nothing_else)


def _with_waiting(served: Served[Page[Any]], waiting: Sequence[Any]) -> Served[Page[Any]]:
    """Read-your-writes: own creations that wait come first, as the newest; one that was made meanwhile shows once."""
    known = {item.id for item in served.value.items}
    added = [item for item in waiting if item.id not in known]
    if not added:
        return served
    page = Page([*added, *served.value.items], served.value.next_cursor)
    return Served(page, served.degradations, served.as_of, pending=True)
