"""What the Dashboard needs from outside, as interfaces; each is kept by one module of ``outbound``.

A method may raise its dependency's own errors; the policy of the row, wired around it, tells an outage from an answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Protocol, TypeVar

from dashboard.model import (
    Agent,
    Analytics,
    Call,
    Claim,
    Conversation,
    Credentials,
    Found,
    Made,
    Memory,
    Page,
    Reply,
    Report,
    Room,
    RoomTicket,
    Session,
    SlowStatement,
    Speech,
    Translation,
    User,
    Zone,
)
from resilience import Decision, Degradation, Operation, OperationRecord, Quota, Rung, Served

T = TypeVar("T")


class Users(Protocol):
    """Accounts in PostgreSQL. A write's operation id is recorded with it: repeating one changes nothing.

    ``unordered`` says that the queue could not be asked for older writes of the same entity, so that an older one
    drained later must not undo this one.
    """

    async def get(self, user_id: str) -> User:
        """Raises UserUnknown."""
        ...

    async def login(self, email: str) -> tuple[Credentials, User] | None:
        """The account of an address and what a login is checked against, in one read; None when there is none."""
        ...

    async def page(self, limit: int, cursor: str | None) -> Page[User]: ...

    async def create(self, operation: Operation) -> User:
        """Raises EmailTaken, KeyReused."""
        ...

    async def change(self, operation: Operation, *, unordered: bool) -> User:
        """Raises UserUnknown, KeyReused."""
        ...

    async def delete(self, operation: Operation, *, unordered: bool) -> None:
        """Raises UserUnknown, KeyReused."""
        ...

    async def operation(self, operation_id: str) -> OperationRecord | None:
        """An operation that was applied or buried; its ``operation`` carries no payload."""
        ...


class Standby(Protocol):
    """The standby of PostgreSQL (row D6, dashboard.standby)."""

    def rung(self, read: Callable[[], Awaitable[T]]) -> Rung[T]:
        """The step of a ladder that reads there; what it serves says how old it is by the replication position."""
        ...


class Copies(Protocol):
    """Last known good copies of users, for the time without a database."""

    def keep(self, user: User) -> None:
        """Takes note of a fresh user; cheap, writes behind."""
        ...

    def keep_credentials(self, email: str, credentials: Credentials) -> None: ...

    async def forget(self, user_id: str) -> None:
        """Drops the copies of a deleted account; best effort."""
        ...

    def rungs(self, user_id: str) -> tuple[Rung[User], Rung[User]]:
        """The steps of a ladder that serve a copy: from Redis, then from this process's memory."""
        ...

    async def newest(self, user_id: str) -> User | None:
        """The newer of the two copies, as far as can be found out at once; never raises."""
        ...

    def login(self, email: str) -> tuple[Rung[tuple[Credentials, User] | None], Rung[tuple[Credentials, User] | None]]:
        """The steps of a ladder that serve an account and its credentials."""
        ...


class Sessions(Protocol):
    """Who is logged in. What has ended stays so on every instance, whichever store is away."""

    async def create(self, session: Session, seconds: float) -> Served[None]: ...

    async def check(self, session_id: str, user_id: str = "") -> Served[None]:
        """Raises SessionUnknown: this session has ended, all of the user's have, or nobody knows it."""
        ...

    async def end(self, session_id: str) -> Served[None]: ...

    async def end_all(self, user_id: str) -> Served[None]:
        """All sessions of a deleted account."""
        ...


class LoginLimit(Protocol):
    """Failed logins are limited per address of the account; off while Redis is away."""

    async def check(self, email: str) -> None:
        """Raises TooManyLogins."""
        ...

    async def failed(self, email: str) -> None: ...


class RequestLimit(Protocol):
    """At most so many requests per key, by all instances together; off while Redis is away."""

    name: str
    quota: Quota

    def take_now(self, key: str) -> Decision | None:
        """One request, when this can be decided at once; else None."""
        ...

    async def take(self, key: str) -> Decision | None:
        """One request; None while the limit is off."""
        ...


class Announce(Protocol):
    """Tells the event stream and the live page what has happened; never waits, never raises (row D5)."""

    def __call__(self, kind: str, subject: str, data: Mapping[str, object], /, *, event_id: str | None = None) -> None:
        """``kind``: "user.changed"; ``subject``: "user:<id>", whose events stay in order; ``data``: of JSON.

        ``event_id``: by which doubles are known; a new one when None. Users whom it concerns are told live when
        ``data`` names them as ``owner_id``, ``user_id`` or among ``user_ids``.
        """
        ...


def silent(_kind: str, _subject: str, _data: Mapping[str, object], /, *, event_id: str | None = None) -> None:
    """Announces nothing."""


class Kept(Protocol[T]):
    """Last known good copies of one kind of value. A key names the owner: nobody is served another's."""

    def keep(self, key: str, value: T) -> None:
        """Takes note of a fresh value; cheap, writes behind."""
        ...

    def rungs(self, key: str) -> tuple[Rung[T], Rung[T]]:
        """The steps of a ladder that serve a copy: from Redis, then from this process's memory."""
        ...


class Activity(Protocol):
    """What a user did, from the tables of calls and rooms."""

    async def analytics(self, user_id: str) -> Analytics: ...

    async def days(self, kind: str, user_id: str, first: date, last: date) -> list[dict[str, Any]]:
        """One entry (``day`` and numbers) for each of these days on which something happened; ``kind`` of report."""
        ...


class ReportRows(Protocol):
    """Reports in PostgreSQL. Who makes one holds a claim; a write under a claim that was taken over changes nothing."""

    async def create(self, report: Report, *, lease: float | None, keep: int) -> None:
        """A new report, claimed for ``lease`` seconds unless None; the owner's oldest beyond ``keep`` are removed.

        Repeating it changes nothing.
        """
        ...

    async def get(self, report_id: str, owner_id: str) -> Report:
        """Raises ReportUnknown."""
        ...

    async def claim(self, lease: float) -> Claim | None:
        """The oldest report that nobody is making; None when there is none."""
        ...

    async def save(
        self, claim: Claim, days: list[dict[str, Any]], next_day: str, progress: float, lease: float
    ) -> bool:
        """What is there so far, and the lease renewed; False when the claim was taken over."""
        ...

    async def finish(self, claim: Claim, *, result: dict[str, Any] | None = None, error: str | None = None) -> bool:
        """Done, or failed with ``error``; False when the claim was taken over."""
        ...


class Zones(Protocol):
    """Pricing zones in PostgreSQL."""

    async def get(self, zone: str) -> Zone | None: ...

    async def note(self, active: Mapping[str, int]) -> None:
        """Takes note of the active participants of zones; new zones get the usual fare and capacity."""
        ...


class Demand(Protocol):
    """Who takes part in calls, per pricing zone, as seen by all instances."""

    def joined(self, zone: str, user_id: str, room_id: str) -> None:
        """Takes note of a participant; cheap, writes behind, best effort."""
        ...

    async def active(self, zone: str) -> int:
        """Active participants now."""
        ...


class QueryTimes(Protocol):
    """How long the statements of a database took, as measured here; from ``threshold`` seconds on they are slow."""

    threshold: float

    @property
    def count(self) -> int:
        """Executions in all."""
        ...

    def slow(self) -> list[SlowStatement]: ...


class Hasher(Protocol):
    """Slow password hashing, off the event loop."""

    async def hash(self, password: str) -> str: ...

    async def verify(self, password: str, encoded: str) -> bool: ...

    async def verify_nothing(self, password: str) -> None:
        """Takes as long as verify, so that an unknown address cannot be told from a wrong password."""
        ...


class Rooms(Protocol):
    """The WebRTC service, called for the user of the current request. Reads take what serves in its place.

    ``as_of`` is None exactly when WebRTC itself answered.
    """

    async def create(self, name: str, max_participants: int) -> Served[Room]: ...

    async def get(self, room_id: str, *rungs: Rung[Room]) -> Served[Room]:
        """Raises RoomUnknown."""
        ...

    async def page(self, limit: int, cursor: str | None, *rungs: Rung[Page[Room]]) -> Served[Page[Room]]: ...

    async def delete(self, room_id: str) -> Served[None]:
        """Raises RoomUnknown."""
        ...

    async def ticket(self, room_id: str, name: str) -> Served[RoomTicket]:
        """For the caller, who is called ``name`` there. Raises RoomUnknown."""
        ...


class RoomProjection(Protocol):
    """What is known here of WebRTC's rooms, for the time without it (row D4). Noting costs next to nothing.

    ``since`` is the unix time before WebRTC was asked: of two things known of one room the later one holds.
    """

    def created(self, room: Room) -> None: ...
    def seen(self, room: Room, since: float) -> None: ...

    def listed(self, owner_id: str, cursor: str | None, page: Page[Room], since: float) -> None:
        """The owner's rooms between the page's ends are these and no others."""
        ...

    def deleted(self, room_id: str, owner_id: str) -> None: ...

    def missing(self, room_id: str) -> None:
        """WebRTC does not know the room."""
        ...

    def room(self, room_id: str) -> tuple[Rung[Room], ...]:
        """The steps of a ladder that read a room; they raise RoomUnknown when it is known to be gone."""
        ...

    def page(self, owner_id: str, limit: int, cursor: str | None) -> tuple[Rung[Page[Room]], ...]:
        """The same for the owner's list; raise CursorInvalid."""
        ...


class StoredCalls(Protocol):
    """Calls in PostgreSQL."""

    async def page(self, user_id: str, limit: int, cursor: str | None) -> Page[Call]:
        """The user's calls, newest first. Raises CursorInvalid."""
        ...

    async def get(self, user_id: str, call_id: str) -> Call:
        """Raises CallUnknown, also when the user took no part."""
        ...

    async def change(self, call_id: str, merge: Callable[[Call | None], Call]) -> None:
        """Puts what ``merge`` makes of the call, or of None, in its place, while nobody else changes it."""
        ...

    async def join(self, old_id: str, new_id: str, merge: Callable[[Call | None, Call | None], Call]) -> None:
        """Puts what ``merge`` makes of the two calls in the place of the new one; from then on the old one is no call
        of its own, and changes of it are changes of the new one."""
        ...


class CallCopies(Protocol):
    """Last known good copies of the first page of each user's history."""

    def keep(self, user_id: str, page: Page[Call]) -> None: ...
    def page(self, user_id: str, limit: int) -> tuple[Rung[Page[Call]], ...]: ...
    def call(self, user_id: str, call_id: str) -> tuple[Rung[Call], ...]: ...


class Event(Protocol):
    """Something that has happened, as the event stream delivers it: at least once, in any order."""

    @property
    def id(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def time(self) -> datetime: ...
    @property
    def data(self) -> Mapping[str, Any]: ...


class ReplyStream(Protocol):
    """An agent's answer as it comes. Left early, it ends all the way to the provider."""

    @property
    def reply(self) -> Reply:
        """Who answers, without the text; at the end with what it cost."""
        ...

    @property
    def degradations(self) -> tuple[Degradation, ...]:
        """The fallbacks that took part, known at the end."""
        ...

    def __aiter__(self) -> AsyncIterator[str]:
        """The pieces of the text. Raises AnswerBroken."""
        ...

    async def __aenter__(self) -> ReplyStream: ...
    async def __aexit__(self, *_: object) -> None: ...


class AiCore(Protocol):
    """The AI Core service, called for the user of the current request, without a policy: that is the use case's.

    Whoever makes something chooses its id; ``key`` makes a repeated call the same operation. What AI Core has queued,
    as its own database is away, has the operation's id; what it will be may then be unknown (None).
    """

    async def create_agent(
        self, agent_id: str, name: str, prompt: str, model: str, key: str
    ) -> Served[Made[Agent]]: ...
    async def agent(self, agent_id: str) -> Served[Agent]: ...
    async def agents(self, limit: int, cursor: str | None) -> Served[Page[Agent]]: ...
    async def change_agent(self, agent_id: str, fields: dict[str, str]) -> Served[Made[Agent | None]]: ...
    async def delete_agent(self, agent_id: str) -> Served[Made[None]]: ...
    async def chat(self, agent_id: str, message: str, conversation_id: str) -> Served[Reply]: ...

    async def conversations(self, agent_id: str, limit: int, cursor: str | None) -> Served[Page[Conversation]]: ...
    async def conversation(self, agent_id: str, conversation_id: str) -> Served[Conversation]: ...
    async def delete_conversation(self, agent_id: str, conversation_id: str) -> Served[Made[None]]: ...

    async def chat_stream(self, agent_id: str, message: str, conversation_id: str) -> Served[ReplyStream]:
        """The same answer as it comes, once it has begun."""
        ...

    async def create_memory(self, memory_id: str, text: str, tags: Sequence[str], key: str) -> Served[Made[Memory]]: ...
    async def memories(self, limit: int, cursor: str | None) -> Served[Page[Memory]]: ...
    async def search(self, query: str, limit: int) -> Served[Found]: ...
    async def delete_memory(self, memory_id: str) -> Served[Made[None]]: ...
    async def translate(self, text: str, target: str, source: str) -> Served[Translation]: ...
    async def speak(self, text: str, voice: str) -> Served[Speech]: ...

    async def operation(self, operation_id: str) -> OperationRecord | None:
        """What became of a write that AI Core has queued for the caller; None when it has no such write."""
        ...


class AiCopies(Protocol):
    """Last known good copies of a user's agents and memories, for the time without AI Core; of lists the first page."""

    def keep_agent(self, owner: str, agent: Agent) -> None: ...
    def keep_agents(self, owner: str, limit: int, page: Page[Agent]) -> None: ...
    def keep_memories(self, owner: str, limit: int, page: Page[Memory]) -> None: ...
    def agent(self, owner: str, agent_id: str) -> tuple[Rung[Agent], ...]: ...
    def agents(self, owner: str, limit: int) -> tuple[Rung[Page[Agent]], ...]: ...
    def memories(self, owner: str, limit: int) -> tuple[Rung[Page[Memory]], ...]: ...

    async def forget_agent(self, owner: str, agent_id: str) -> None:
        """Drops the copies of a deleted agent, the list's as well; best effort."""
        ...

    async def forget_memories(self, owner: str) -> None:
        """Drops the copy of the list, as one of it is deleted; best effort."""
        ...
