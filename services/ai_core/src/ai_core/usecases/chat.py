"""Chat with an agent (rows A1, ai_core.postgres, and A2, ai_core.providers).

The agent and the conversation are read, the chain answers, the exchange is written down. Once somebody has answered, a
database that is gone costs at most the memory of the exchange and never the answer.
"""

import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self

from ai_core.model import AgentUnknown, Invalid, Reply, Turn, checked, is_id, recent
from ai_core.query import Completion, Query
from ai_core.usecases.conversations import Conversations, Opened
from ai_core.usecases.streams import Stream
from resilience import Clock, Degradation, Served


class Answering(Protocol):
    """The provider chain, as far as it is needed here."""

    async def complete(self, asked: Query) -> Served[Completion]:
        """The whole answer."""
        ...

    async def stream(self, asked: Query) -> Served[Stream]:
        """The answer from its first token on."""
        ...


class Asking:
    """One message on its way: where it belongs, and how its answer is remembered."""

    def __init__(
        self, conversations: Conversations, opened: Served[Opened], conversation_id: str, message: str, at: float
    ) -> None:
        self._conversations = conversations
        self._opened = opened.value
        self._degraded = opened.degraded
        self._message = message
        self._at = at
        self.conversation_id = conversation_id

    def query(self) -> Query:
        """Prompt, history and message, for the chain."""
        agent, conversation = self._opened
        system = [Turn("system", agent.system_prompt)] if agent.system_prompt else []
        said = recent(conversation.turns) if conversation else []
        turns = [*system, *said, Turn("user", self._message)]
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        return Query(messages, agent.owner_id, prefer=agent.model, agent=agent.id)

    async def remember(self, answer: str) -> tuple[Degradation, ...]:
        """Writes the exchange down; how that was degraded."""
        opened = self._opened
        saved = await self._conversations.remember(
            opened.agent, self.conversation_id, self._message, answer, self._at, database_failed=self._degraded
        )
        return saved.degradations


class ReplyStream:
    """An agent's answer as it comes; leave it (``async with``) in any case.

    ``reply`` says who answers; its text stays empty, usage and finish reason are known at the end. ``degradations``:
    those of writing the exchange down, at the end. Only a complete answer is remembered.
    """

    def __init__(self, stream: Stream, asking: Asking) -> None:
        self._stream = stream
        self._asking = asking
        self.degradations: tuple[Degradation, ...] = ()
        self.reply = Reply(
            "",
            stream.provider,
            stream.model,
            asking.conversation_id,
            stream.simulated,
            fallback_from=stream.fallback_from,
            as_of=stream.as_of,
        )

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(kind, error, traceback)

    async def __aiter__(self) -> AsyncIterator[str]:
        """Pieces of the text. Raises StreamBroken."""
        async for chunks in self._stream:
            if text := "".join(chunk.text for chunk in chunks):
                yield text
        stream = self._stream
        self.reply = replace(
            self.reply,
            prompt_tokens=stream.usage.prompt,
            completion_tokens=stream.usage.completion,
            cost=stream.cost,
            finish_reason=stream.finish_reason,
        )
        self.degradations = await self._asking.remember(stream.text)


class Chat:
    """Each method acts for ``owner``, who talks to no other agents than the own ones."""

    def __init__(self, conversations: Conversations, chain: Answering, clock: Clock) -> None:
        self._conversations = conversations
        self._chain = chain
        self._clock = clock

    async def reply(self, owner: str, agent_id: str, message: str, conversation_id: str = "") -> Served[Reply]:
        """The agent's answer to a message; an empty ``conversation_id`` begins a new conversation.

        Raises Invalid, AgentUnknown, and what the chain and the database's policy raise.
        """
        asking, degradations = await self._open(owner, agent_id, message, conversation_id)
        answered = await self._chain.complete(asking.query())
        saved = await asking.remember(answered.value.text)
        reply = answered.map(lambda completion: _reply(completion, asking.conversation_id))
        return reply.also(*degradations, *saved)

    async def stream(self, owner: str, agent_id: str, message: str, conversation_id: str = "") -> Served[ReplyStream]:
        """The same as it comes, from its first token on. Raises as ``reply``."""
        asking, degradations = await self._open(owner, agent_id, message, conversation_id)
        answered = await self._chain.stream(asking.query())
        return answered.map(lambda stream: ReplyStream(stream, asking)).also(*degradations)

    async def _open(
        self, owner: str, agent_id: str, message: str, conversation_id: str
    ) -> tuple[Asking, tuple[Degradation, ...]]:
        began = self._clock.time()
        conversation = _checked(agent_id, message, conversation_id)
        opened = await self._conversations.open(owner, agent_id, conversation)
        return Asking(self._conversations, opened, conversation, message, began), opened.degradations


def _checked(agent_id: str, message: str, conversation_id: str) -> str:
    """The conversation's id, new when none is given; an unknown one is a conversation without turns.

    Unknown ids are not refused because a conversation whose first exchange could not be saved must be able to go on.
    """
    checked({"message": message})
    if conversation_id and not is_id(conversation_id):
        raise Invalid({"conversation_id": "is no conversation's id"})
    if not is_id(agent_id):
        raise AgentUnknown
    return conversation_id or str(uuid.uuid4())


def _reply(completion: Completion, conversation_id: str) -> Reply:
    return Reply(
        completion.text,
        completion.provider,
        completion.model,
        conversation_id,
        completion.simulated,
        fallback_from=completion.fallback_from,
        as_of=completion.as_of,
        prompt_tokens=completion.usage.prompt,
        completion_tokens=completion.usage.completion,
        cost=completion.cost,
        finish_reason=completion.finish_reason,
    )
