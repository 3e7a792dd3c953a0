"""Accounts: registering, reading, changing, deleting, also while the database is away (row D1, dashboard.postgres)."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dashboard.degradation import REDIS_QUEUE
from dashboard.model import (
    Credentials,
    DomainError,
    EmailTaken,
    KeyReused,
    NotAllowed,
    Page,
    User,
    UserUnknown,
    WriteFailed,
)
from dashboard.ports import Announce, Copies, Hasher, Users, silent
from dashboard.usecases.creations import made_id
from dashboard.usecases.reads import Reads
from resilience import (
    Accepted,
    DurableWriter,
    Operation,
    OperationStatus,
    RowPolicy,
    Served,
    Written,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Queued:
    """The write was accepted and will be applied; ``operation_id`` finds it again."""

    operation_id: str
    status: OperationStatus


# What the target says of a write that it cannot apply, and what its author is told.
_BURIED: dict[str, type[DomainError]] = {"CONFLICT": EmailTaken, "NOT_FOUND": UserUnknown}


def user_entity(user_id: str) -> str:
    """The ordering unit of an account's changes."""
    return f"user:{user_id}"


def _email_entity(email: str) -> str:
    return f"email:{hashlib.sha256(email.encode()).hexdigest()[:32]}"


def _fingerprint(kind: str, entity: str, payload: dict[str, Any]) -> str:
    """Tells whether a repeated idempotency key came with the same request."""
    text = json.dumps([kind, entity, payload], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


_KINDS = {"user.create": "user.registered", "user.update": "user.changed", "user.delete": "user.deleted"}


def announce_write(announce: Announce, operation: Operation) -> None:
    """Tells of an applied write of an account; the operation's id makes doubles known."""
    if (kind := _KINDS.get(operation.kind)) is not None:
        user_id = str(operation.payload.get("id") or operation.entity.removeprefix("user:"))
        announce(kind, user_entity(user_id), {"user_id": user_id}, event_id=operation.id)


class Accounts:
    """``key_secret`` makes operation ids from idempotency keys unguessable."""

    def __init__(
        self,
        users: Users,
        reads: Reads[Users],
        copies: Copies,
        policy: RowPolicy,
        writer: DurableWriter,
        hasher: Hasher,
        *,
        key_secret: bytes,
        announce: Announce = silent,
    ) -> None:
        self._users = users
        self._reads = reads
        self._copies = copies
        self._policy = policy
        self._writer = writer
        self._hasher = hasher
        self._key_secret = key_secret
        self._announce = announce

    def _operation_id(self, owner: str, key: str | None) -> str:
        if key is None:
            return uuid.uuid4().hex
        return hmac.new(self._key_secret, f"{owner}\n{key}".encode(), hashlib.sha256).hexdigest()[:32]

    def _operation(self, kind: str, entity: str, owner: str, payload: dict[str, Any], key: str | None) -> Operation:
        fingerprint = _fingerprint(kind, entity, payload) if key is not None else ""
        return Operation(self._operation_id(owner, key), kind, entity, owner, payload, fingerprint)

    async def register(self, email: str, password: str, display_name: str, key: str | None) -> Served[User | Queued]:
        """A new account. Raises EmailTaken, KeyReused, WriteRefused.

        The owner of the operation is nobody: whoever registered has no token yet and is known by the operation's id.
        """
        operation_id = self._operation_id(_email_entity(email), key)
        user_id = made_id(operation_id)
        fingerprint = _fingerprint("user.create", email, {"display_name": display_name}) if key is not None else ""
        password_hash = await self._hasher.hash(password)
        payload = {"id": user_id, "email": email, "display_name": display_name, "password_hash": password_hash}
        operation = Operation(operation_id, "user.create", _email_entity(email), "", payload, fingerprint)
        served = await self._write(operation, lambda _: self._users.create(operation), lambda: self._account(user_id))
        if isinstance(served.value, User):
            self._copies.keep_credentials(email, Credentials(user_id, password_hash, served.value.role))
        return served

    async def change(
        self, user_id: str, caller: str, payload: dict[str, Any], key: str | None
    ) -> Served[User | Queued]:
        """Changes the caller's own account. Raises NotAllowed, UserUnknown, KeyReused, WriteFailed, WriteRefused."""
        _own(user_id, caller)
        operation = self._operation("user.update", user_entity(user_id), caller, payload, key)
        return await self._write(
            operation,
            lambda unordered: self._users.change(operation, unordered=unordered),
            lambda: self._account(user_id),
        )

    async def delete(self, user_id: str, caller: str, key: str | None) -> Served[Queued | None]:
        """Deletes the caller's own account. Raises NotAllowed, UserUnknown, KeyReused, WriteRefused."""
        _own(user_id, caller)
        operation = self._operation("user.delete", user_entity(user_id), caller, {}, key)

        async def gone() -> Served[None]:
            return Served(None)

        served = await self._write(
            operation, lambda unordered: self._users.delete(operation, unordered=unordered), gone
        )
        if served.value is None:
            await self._copies.forget(user_id)
        return served

    async def _write(
        self,
        operation: Operation,
        direct: Callable[[bool], Awaitable[T]],
        result: Callable[[], Awaitable[Served[T]]],
    ) -> Served[T | Queued]:
        served = await self._writer.write(operation, direct)
        match served.value:
            case Written(value):
                if isinstance(value, User):
                    self._copies.keep(value)
                announce_write(self._announce, operation)
                return served.map(lambda _: value)
            case Accepted(record):
                known = record.operation
                if known and operation.fingerprint and known.fingerprint != operation.fingerprint:
                    raise KeyReused
                if record.status is OperationStatus.DEAD:
                    raise _BURIED.get(record.error, WriteFailed)
                queued = Queued(operation.id, record.status)
                if record.status is OperationStatus.APPLIED and not served.degraded:
                    return await self._shown(result, queued)
                return served.map(lambda _: queued)

    async def _shown(self, result: Callable[[], Awaitable[Served[T]]], queued: Queued) -> Served[T | Queued]:
        """What an applied write made. That it cannot be shown, as the database is gone again, is no failed write."""
        try:
            return (await result()).map(lambda value: value)
        except DomainError:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, the write is applied, and the caller must hear that
            return Served(queued, (self._policy.degradation(REDIS_QUEUE),))

    async def read(self, user_id: str, caller: str) -> Served[User]:
        """The caller's own account, from the database or a copy, with own waiting changes in it.

        Raises NotAllowed, UserUnknown.
        """
        _own(user_id, caller)
        # Asked before the account is read: a write that is applied in between shows in one of the two, or in both.
        waiting = await self._writer.pending(user_entity(user_id))
        served = await self._account(user_id)
        if served.degraded and not waiting.asked:  # the first to notice; another instance may have queued something
            waiting = await self._writer.pending(user_entity(user_id), ask=True)
        own = [one for one in waiting if one.owner == caller]
        if not (waiting.certain and served.degraded):
            own = [one for one in own if _is_newer(one, served.value)]
        return _with_pending(served, own)

    async def _account(self, user_id: str) -> Served[User]:
        return await self._reads.serve(
            lambda users: self._fresh(users, user_id),
            *self._copies.rungs(user_id),
            from_standby=lambda users: self._newest(users, user_id),
        )

    async def _fresh(self, users: Users, user_id: str) -> User:
        user = await users.get(user_id)
        self._copies.keep(user)
        return user

    async def _newest(self, replica: Users, user_id: str) -> User:
        """The standby's row, unless a copy shows a change that has not reached the standby: a queued write, say, that
        another instance has applied, while this one has not found the database yet."""
        user, copy = await asyncio.gather(replica.get(user_id), self._copies.newest(user_id))
        return copy if copy and copy.revision > user.revision else user

    async def page(self, limit: int, cursor: str | None) -> Served[Page[User]]:
        """All accounts, for administrators; never from copies. Raises CursorInvalid."""
        return await self._reads.serve(lambda users: users.page(limit, cursor))


def _own(user_id: str, caller: str) -> None:
    if user_id != caller:
        raise NotAllowed


def _is_newer(operation: Operation, user: User) -> bool:
    """Whether an accepted write came after what the account shows: an older one is in it by now, or overtaken."""
    return operation.accepted_at > user.updated_at


def _with_pending(served: Served[User], own: Sequence[Operation]) -> Served[User]:
    """Read-your-writes: own accepted changes show, marked as pending."""
    if not own:
        return served
    user = served.value
    for operation in own:
        user = user.patched(operation.payload)
    return Served(user, served.degradations, served.as_of, pending=True)
