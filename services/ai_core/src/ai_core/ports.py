"""What AI Core needs from outside, as interfaces, each kept by one module of ``outbound``; and how those may fail."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from math import inf
from typing import Any, NamedTuple, Protocol

from ai_core import query
from ai_core.model import Agent, Conversation, Cursor, Match, Memory, Page, Speech
from resilience import Operation, OperationRecord, Rung


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


class VectorsGone(Exception):
    """The database is well, but cannot compare vectors: its extension is missing or broken."""


class EmbeddingBusy(Exception):
    """The local model has more to do than may wait for it, or did not do it in time."""


class Vectors(NamedTuple):
    """Vectors of length 1, one per text, in order; only those of the same ``model`` can be compared."""

    values: list[list[float]]
    model: str
    tokens: int
    simulated: bool = False


class EmbeddingModel(Protocol):
    """Makes vectors of texts: near in meaning, near in direction."""

    @property
    def name(self) -> str:
        """The model's name beside its vectors; it says everything that changes them."""
        ...

    @property
    def dimensions(self) -> int | None:
        """Numbers of a vector; None when that is not known before the first one."""
        ...

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """A vector per text. Raises ProviderFailed, ProviderBusy, ModelUnknown, EmbeddingBusy, RequestRefused."""
        ...


class CannotCarry(Exception):
    """This provider's protocol has no way to say what the query asks (``parameters``); nothing was sent."""

    def __init__(self, *parameters: str) -> None:
        super().__init__(*parameters)
        self.parameters = parameters


class Committing(Protocol):
    """Writes of all kinds, each applied once however often it comes. Every method may raise StoreUnavailable."""

    async def commit(self, operation: Operation, *, unordered: bool) -> Any:
        """What is there after the write: of this call, or of an earlier one with the same operation.

        ``unordered``: it is made without asking the queue for older writes, which must not undo it when they come.
        Raises KeyReused when the operation was here before with another fingerprint, WriteFailed when it was buried,
        and the domain errors of its kind; then nothing has happened.
        """
        ...

    async def operation(self, operation_id: str) -> OperationRecord | None:
        """An applied or buried operation, without its payload."""
        ...


class LocalModel(EmbeddingModel, Protocol):
    """The model in this process. It raises ProviderFailed when it is missing, and EmbeddingBusy."""

    async def embed(self, texts: Sequence[str], limit: float | None = None) -> Vectors:
        """``limit``: seconds for each text, after which it counts as busy."""
        ...

    async def soon(self, text: str) -> Vectors | None:
        """The text's vector if that takes a moment only; None otherwise."""
        ...

    async def load(self) -> None:
        """Gets ready, so that the first text is as fast as the others; never raises."""
        ...


class AgentStore(Protocol):
    """Agents and their conversations, each seen by its owner only. Every method may raise StoreUnavailable."""

    async def abandon(self, owner_id: str, key: str, at: float) -> None:
        """No later creation with this key makes an agent; one made before stays."""
        ...

    async def get(self, owner_id: str, agent_id: str) -> Agent:
        """Raises AgentUnknown."""
        ...

    async def page(self, owner_id: str, limit: int, after: Cursor | None) -> list[Agent]:
        """At most ``limit`` agents, newest first."""
        ...

    async def opened(self, owner_id: str, agent_id: str, conversation_id: str) -> tuple[Agent, Conversation | None]:
        """The agent, and the conversation if there is one. Raises AgentUnknown."""
        ...

    async def conversations(self, owner_id: str, agent_id: str, limit: int, after: Cursor | None) -> list[Conversation]:
        """At most ``limit`` conversations without turns, the one that was used last first. Raises AgentUnknown."""
        ...


class AgentCopies(Protocol):
    """Last known agents and conversations for the time without the database, each under its owner.

    ``since``: when a list was read (unix seconds); whatever changed later is not undone by it.
    """

    def keep(self, agent: Agent) -> None:
        """Takes note of an agent that was read."""
        ...

    def keep_page(
        self, owner_id: str, agents: Sequence[Agent], *, complete: bool, since: float, after: Cursor | None
    ) -> None:
        """Takes note of a page of agents; ``complete``: nothing comes behind it."""
        ...

    async def changed(self, agents: Sequence[Agent]) -> None:
        """Takes note of agents that were made or changed."""
        ...

    async def gone(self, owner_id: str, agent_id: str) -> None:
        """Takes note that there is no such agent any more."""
        ...

    def agent(self, owner_id: str, agent_id: str) -> tuple[Rung[Agent | None], ...]:
        """The steps of a ladder that read an agent. They raise AgentUnknown."""
        ...

    def page(self, owner_id: str, size: int, after: Cursor | None) -> tuple[Rung[Page[Agent]], ...]:
        """The same for a list, as far as the copy goes."""
        ...

    def keep_conversation(self, owner_id: str, agent_id: str, conversation: Conversation) -> None:
        """Takes note of a conversation that was read."""
        ...

    def keep_conversations(
        self,
        owner_id: str,
        agent_id: str,
        found: Sequence[Conversation],
        *,
        complete: bool,
        since: float,
        after: Cursor | None,
    ) -> None:
        """Takes note of a page of conversations."""
        ...

    async def said(self, owner_id: str, agent_id: str, conversation: Conversation) -> None:
        """Takes note of a conversation that went on."""
        ...

    async def forgotten(self, owner_id: str, agent_id: str, conversation_id: str) -> None:
        """Takes note that a conversation was deleted."""
        ...

    def opened(
        self, owner_id: str, agent_id: str, conversation_id: str
    ) -> tuple[Rung[tuple[Agent | None, Conversation | None]], ...]:
        """The steps that read an agent, and a conversation if it is known. They raise AgentUnknown."""
        ...

    def conversations(
        self, owner_id: str, agent_id: str, size: int, after: Cursor | None
    ) -> tuple[Rung[Page[Conversation]], ...]:
        """The steps that read a list of conversations, as far as the copy goes."""
        ...


class MemoryStore(Protocol):
    """Memories, each seen by its owner only. Every method may raise StoreUnavailable."""

    async def abandon(self, owner_id: str, key: str, at: float) -> None:
        """No later creation with this key makes a memory; one made before stays."""
        ...

    async def page(self, owner_id: str, limit: int, after: Cursor | None) -> list[Memory]:
        """At most ``limit`` memories, newest first."""
        ...

    async def search(self, owner_id: str, query: str, limit: int) -> list[Match]:
        """The memories that hold the query's words, best first."""
        ...

    async def nearest(self, owner_id: str, query: str, asked: Vectors, limit: int) -> list[Match]:
        """The memories whose vectors are nearest, and those that hold the query's words. Raises VectorsGone."""
        ...

    async def behind(self, owner_id: str, model: str) -> bool:
        """Whether some memories of the owner still wait for their vector of this model."""
        ...


class MemoryCopies(Protocol):
    """Copies of the beginnings of lists of memories, each under its owner, for the time without the database."""

    def keep(self, owner_id: str, items: Sequence[Memory], *, complete: bool, since: float) -> None:
        """Takes note of the newest memories as of a moment (unix seconds); ``complete``: there are no others."""
        ...

    async def change(self, owner_id: str, made: Sequence[Memory], gone: Sequence[str]) -> None:
        """Brings memories that were made, or are gone (by id), into the copy."""
        ...

    def rungs(self, owner_id: str, size: int, after: Cursor | None) -> Sequence[Rung[Page[Memory]]]:
        """The steps of a ladder that read a page, as far as the copy goes."""
        ...


class Due(NamedTuple):
    """A memory that waits for its vector; ``attempts`` counts this one."""

    memory_id: str
    text: str
    attempts: int


class EmbeddingWork(Protocol):
    """What waits to be embedded, shared by all instances. Every method may raise StoreUnavailable."""

    async def claim(self, model: str, limit: int, lease: float) -> list[Due]:
        """The oldest that are due, for ``lease`` seconds; nobody else gets them meanwhile."""
        ...

    async def keep(self, memory_ids: Sequence[str], vectors: Vectors) -> None:
        """Stores vectors; for memories that are gone by now it does nothing."""
        ...

    async def postpone(self, memory_ids: Sequence[str], model: str, seconds: float | None, *, counted: bool) -> None:
        """Not again for so many seconds, or (None) never; ``counted``: whether it was an attempt."""
        ...

    async def any(self) -> bool:
        """Whether there are memories at all."""
        ...

    async def add_missing(self, model: str, after: str, limit: int) -> str:
        """Puts in line what has no vector of this model, among ``limit`` memories; the last one's id, "" at the end."""
        ...


class ModelProvider(Protocol):
    """A provider of language models.

    No method retries, none raises a driver's own error; limits of time are the caller's, except for connecting. That a
    model wants to be left alone although nothing failed (nothing remains of a limit) is told to a listener that the
    provider is made with.
    """

    @property
    def name(self) -> str:
        """The provider's name in the chain, for example "openai"."""
        ...

    async def complete(self, model: str, asked: query.Query) -> query.Completion:
        """The model's whole answer. An answer of 200 without a useful choice is a failure.

        Raises ProviderFailed, ProviderBusy, ModelUnknown, CannotCarry, RequestRefused, TooLong.
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


class SpeechProvider(Protocol):
    """A provider of speech. No method retries, none raises a driver's own error; limits of time are the caller's."""

    @property
    def name(self) -> str:
        """As answers name it."""
        ...

    @property
    def longest(self) -> int:
        """Characters of a text that it speaks."""
        ...

    async def speak(self, text: str, voice: str) -> Speech:
        """The text as sound, by its own voice when ``voice`` is none of its. 200 without sound is a failure.

        Raises ProviderFailed, ProviderBusy, ModelUnknown, RequestRefused, TooLong.
        """
        ...

    async def ping(self) -> None:
        """Raises ProviderFailed unless the provider answers an endpoint that costs nothing."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


class Answers(Protocol):
    """Kept answers by ``Query.key()``, shared by all processes; also while their store is away.

    No method raises, and none waits longer than the store's own limit.
    """

    async def get(self, key: str, younger: float = inf) -> query.Completion | None:
        """The kept answer to exactly this query, with ``as_of``.

        One that this process itself keeps is enough when it is at most ``younger`` seconds old.
        """
        ...

    def keep(self, key: str, completion: query.Completion, claim: str = "") -> None:
        """Takes note of a complete, live answer; cheap, writes behind. Gives ``claim`` back with it."""
        ...

    async def claim(self, key: str, seconds: float) -> "Claim":
        """The right to ask a provider this query, for so many seconds, among all processes."""
        ...

    async def follow(self, key: str, holder: str, seconds: float) -> query.Completion | None:
        """The answer of the process that holds the claim; None when it had none, or not in time."""
        ...

    def release(self, key: str, claim: str) -> None:
        """Gives a claim back without an answer; cheap."""
        ...


class Claim(NamedTuple):
    """``mine``: to be given back. ``holder``: another process is asking. Both empty: none is, or nobody knows; ask."""

    mine: str = ""
    holder: str = ""
