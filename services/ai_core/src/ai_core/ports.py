"""What AI Core needs from outside, as interfaces, each kept by one module of ``outbound``; and how those may fail."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from ai_core import query
from ai_core.model import Agent, Completion, Cursor, Match, Memory, Turn


class StoreUnavailable(Exception):
    """The database could not be used: unreachable, too slow, shutting down, or not migrated yet."""


class StoreDisconnected(StoreUnavailable):
    """A pooled connection turned out to be closed before anything was sent on it: trying again is safe, once."""


class ProviderFailed(Exception):
    """The provider did not answer usefully: unreachable, 5xx, a refused key, or an answer that is no completion."""


class ProviderBusy(Exception):
    """The provider asked to be left alone (429); ``retry_after`` in seconds, None when it did not say."""

    def __init__(self, provider: str, retry_after: float | None) -> None:
        super().__init__(f"{provider} asked to be left alone")
        self.retry_after = retry_after


class ModelUnknown(Exception):
    """The provider is well but does not have the model; another provider might."""


class AgentStore(Protocol):
    """Agents and their conversations, each seen by its owner only. Every method may raise StoreUnavailable."""

    async def create(self, agent: Agent, key: str, fingerprint: str) -> Agent:
        """Stores a new agent. The same owner, ``key`` and ``fingerprint`` again gives the agent made the first time.

        Raises KeyReused, IdTaken, TooManyAgents.
        """
        ...

    async def abandon(self, owner_id: str, key: str, at: float) -> None:
        """No later creation with this key makes an agent; one made before stays."""
        ...

    async def get(self, owner_id: str, agent_id: str) -> Agent:
        """Raises AgentUnknown."""
        ...

    async def page(self, owner_id: str, limit: int, after: Cursor | None) -> list[Agent]:
        """At most ``limit`` agents, newest first."""
        ...

    async def update(self, owner_id: str, agent_id: str, fields: Mapping[str, str], at: float) -> Agent:
        """Sets the fields and the time of the change (unix seconds). Raises AgentUnknown."""
        ...

    async def delete(self, owner_id: str, agent_id: str) -> None:
        """Deletes the agent and its conversations. Raises AgentUnknown."""
        ...

    async def conversation(self, owner_id: str, agent_id: str, conversation_id: str) -> tuple[Agent, list[Turn]]:
        """The agent, and the conversation's kept turns, oldest first; none when it is new. Raises AgentUnknown."""
        ...

    async def remember(self, agent: Agent, conversation_id: str, turns: Sequence[Turn], at: float) -> None:
        """Appends turns to a conversation, keeping the newest ones; does nothing when the agent is gone."""
        ...


class MemoryStore(Protocol):
    """Memories, each seen by its owner only. Every method may raise StoreUnavailable."""

    async def create(self, memory: Memory, key: str, fingerprint: str) -> Memory:
        """Stores a new memory, once per owner and key. Raises KeyReused, IdTaken, TooManyMemories."""
        ...

    async def abandon(self, owner_id: str, key: str, at: float) -> None:
        """No later creation with this key makes a memory; one made before stays."""
        ...

    async def page(self, owner_id: str, limit: int, after: Cursor | None) -> list[Memory]:
        """At most ``limit`` memories, newest first."""
        ...

    async def search(self, owner_id: str, query: str, limit: int) -> list[Match]:
        """The memories that hold the query's words, best first."""
        ...

    async def delete(self, owner_id: str, memory_id: str) -> None:
        """Raises MemoryUnknown."""
        ...


class ChatProvider(Protocol):
    """A language model provider."""

    @property
    def name(self) -> str:
        """The provider's name in the chain, for example "openai"."""
        ...

    async def complete(self, model: str, turns: Sequence[Turn]) -> Completion:
        """The model's answer. Raises ProviderFailed, ProviderBusy, ModelUnknown, RequestRefused."""
        ...


class ModelProvider(Protocol):
    """A provider of language models.

    No method retries, none raises a driver's own error; limits of time are the caller's, except for connecting.
    """

    @property
    def name(self) -> str:
        """The provider's name in the chain, for example "openai"."""
        ...

    async def complete(self, model: str, asked: query.Query) -> query.Completion:
        """The model's whole answer. An answer of 200 without a useful choice is a failure.

        Raises ProviderFailed, ProviderBusy, ModelUnknown, RequestRefused, TooLong.
        """
        ...

    def stream(
        self, model: str, asked: query.Query
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[query.Chunk]]]:
        """The model's answer as it comes: per read of the network the chunks in it, in order.

        The iterator ends only after a finish reason has been seen; a stream that is cut, or carries an error, or is no
        stream at all, raises ProviderFailed. Entering sends the request and reads the status. Raises as ``complete``.
        """
        ...

    async def ping(self) -> None:
        """Raises ProviderFailed unless the provider answers an endpoint that costs nothing."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


class Answers(Protocol):
    """Kept answers, by everything that shapes them; also while their store is away."""

    async def get(self, asked: query.Query) -> query.Completion | None:
        """The kept answer to exactly this query of this tenant, with ``as_of``."""
        ...

    def keep(self, asked: query.Query, completion: query.Completion) -> None:
        """Takes note of a complete, live answer; cheap, writes behind."""
        ...
