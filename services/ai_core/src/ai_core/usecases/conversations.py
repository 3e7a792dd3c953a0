"""Conversations with agents: what was said, also without the database (row A1, ai_core.postgres)."""

from typing import Any, NamedTuple

from ai_core.degradation import UNSAVED_HISTORY
from ai_core.model import (
    HISTORY_CHARACTERS,
    Agent,
    AgentUnknown,
    Conversation,
    ConversationUnknown,
    Cursor,
    Page,
    checked,
    checked_page_size,
    conversation_place,
    fingerprint,
    is_id,
    page_of,
)
from ai_core.ports import AgentCopies, AgentStore
from ai_core.usecases.agents import agents_of, found_or_waiting, known_id, only_waiting
from ai_core.usecases.waiting import agent_after, conversation_after, conversations_changed, overlaid
from ai_core.usecases.writes import Made, Writes
from resilience import Clock, Operation, RowPolicy, Served, WriteRefused


class Opened(NamedTuple):
    """An agent, and a conversation with it that goes on: None when it begins."""

    agent: Agent
    conversation: Conversation | None


class Conversations:
    """Each method acts for ``owner``, who sees no other conversations than the own ones."""

    def __init__(
        self, store: AgentStore, copies: AgentCopies, postgres: RowPolicy, writes: Writes, clock: Clock
    ) -> None:
        self._store = store
        self._copies = copies
        self._postgres = postgres
        self._writes = writes
        self._clock = clock

    async def open(self, owner: str, agent_id: str, conversation_id: str) -> Served[Opened]:
        """The agent, and what was said. Raises AgentUnknown."""
        known = known_id(agent_id)
        waiting = await self._writes.pending(agents_of(owner))
        nothing = (None, None)
        rungs = (*self._copies.opened(owner, known, conversation_id), only_waiting(waiting, known, nothing))

        async def read() -> tuple[Agent, Conversation | None]:
            agent, conversation = await self._store.opened(owner, known, conversation_id)
            self._copies.keep(agent)
            if conversation is not None:
                self._copies.keep_conversation(owner, known, conversation)
            return agent, conversation

        served = await found_or_waiting(self._postgres, read, rungs, waiting, known, nothing)
        agent = agent_after(served.value[0], waiting, known)
        if agent is None:
            raise AgentUnknown
        opened = Opened(agent, conversation_after(served.value[1], waiting, known, conversation_id))
        return Served(opened, served.degradations, served.as_of, pending=opened != served.value)

    async def get(self, owner: str, agent_id: str, conversation_id: str) -> Served[Conversation]:
        """One conversation with its turns. Raises AgentUnknown, ConversationUnknown."""
        if not is_id(conversation_id):
            raise ConversationUnknown
        opened = await self.open(owner, agent_id, conversation_id)
        if (conversation := opened.value.conversation) is None:
            raise ConversationUnknown
        return opened.map(lambda _: conversation)

    async def page(self, owner: str, agent_id: str, page_size: int = 0, cursor: str = "") -> Served[Page[Conversation]]:
        """Conversations without their turns, the one that was used last first. Raises AgentUnknown, Invalid."""
        known, size, after = known_id(agent_id), checked_page_size(page_size), Cursor.parse(cursor)
        waiting = await self._writes.pending(agents_of(owner))
        empty: Page[Conversation] = Page([])
        rungs = (*self._copies.conversations(owner, known, size, after), only_waiting(waiting, known, empty))

        async def read() -> Page[Conversation]:
            since = self._clock.time()
            found = await self._store.conversations(owner, known, size + 1, after)
            complete = len(found) <= size
            self._copies.keep_conversations(owner, known, found[:size], complete=complete, since=since, after=after)
            return page_of(found, size, conversation_place)

        served = await found_or_waiting(self._postgres, read, rungs, waiting, known, empty)
        changes = conversations_changed(served.value.items, waiting, known)
        page = overlaid(served.value, changes, size, after, conversation_place)
        return Served(page, served.degradations, served.as_of, pending=page != served.value)

    async def delete(self, owner: str, agent_id: str, conversation_id: str, key: str = "") -> Served[Made[None]]:
        """Forgets a conversation. Raises AgentUnknown, ConversationUnknown, KeyReused, WriteFailed, WriteRefused."""
        if not is_id(conversation_id):
            raise ConversationUnknown
        checked({"idempotency_key": key})
        payload = {"agent": known_id(agent_id), "id": conversation_id}
        request = fingerprint({"kind": "conversation.delete", **payload})
        operation = self._writes.operation(
            "conversation.delete", agents_of(owner), owner, payload, key=key, request=request
        )

        async def promised(_: Operation) -> None:
            return None

        served = await self._writes.make(operation, promised)
        if not served.value.operation_id:
            await self._copies.forgotten(owner, agent_id, conversation_id)
        return served

    async def remember(
        self,
        agent: Agent,
        conversation_id: str,
        message: str,
        answer: str,
        began_at: float,
        *,
        database_failed: bool = False,
    ) -> Served[None]:
        """Writes an exchange down, in the order in which exchanges began (``began_at``, unix seconds).

        ``database_failed``: for this very exchange, so that nobody waits for it again.

        Whatever happens, the answer has been given: that it could not even be queued is said, and no error.
        """
        turns = [{"role": "user", "content": message}, {"role": "assistant", "content": _storable(answer)}]
        payload = {"agent": agent.id, "id": conversation_id, "turns": turns, "at": round(began_at, 6)}
        owner = agent.owner_id
        operation = self._writes.operation("conversation.append", agents_of(owner), owner, payload)

        async def promised(_: Operation) -> None:
            return None

        try:
            served = await self._writes.make(operation, promised, queue_first=database_failed)
        except WriteRefused:
            return Served(None, (self._postgres.degradation(UNSAVED_HISTORY),))
        conversation: Any = served.value.value
        if conversation is not None:
            await self._copies.said(owner, agent.id, conversation)
        return served.map(lambda _: None)


def _storable(answer: str) -> str:
    """What PostgreSQL cannot hold is left out, and no more is kept than fits the history."""
    text = answer.replace("\x00", "").encode("utf-8", "replace").decode()
    return text[: HISTORY_CHARACTERS // 2]
