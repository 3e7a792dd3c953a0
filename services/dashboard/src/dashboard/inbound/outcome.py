"""From what a use case returned or raised to what a caller may see: the same for HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from dashboard import model
from dashboard.degradation import REDIS
from dashboard.ports import Sessions
from resilience import (
    QueueUnavailable,
    RowPolicy,
    Served,
    WriteRefused,
)
from resilience.errors import POLICY_FAILURES
from service_kit import context
from service_kit.errors import (
    Conflict,
    DependencyUnavailable,
    Forbidden,
    NotFound,
    RateLimited,
    ServiceError,
    Unauthorized,
    ValidationFailed,
    translate,
)
from service_kit.refusals import unasked, write_refused
from service_kit.tokens import Claims, TokenVerifier

T = TypeVar("T")


class Outcome:
    """Knows who calls, and which policy stands behind a failure.

    ``is_outage`` tells the database's failures from defects; ``policies`` are by row id.
    """

    def __init__(
        self,
        verifier: TokenVerifier,
        sessions: Sessions,
        policies: Mapping[str, RowPolicy],
        database: RowPolicy,
        is_outage: Callable[[BaseException], bool],
    ) -> None:
        self._verifier = verifier
        self._sessions = sessions
        self._policies = policies
        self._database = database
        self._is_outage = is_outage

    async def caller(self, token: str) -> Claims:
        """Who the token speaks for, when its session is still open. Raises Unauthorized."""
        claims = self._verifier.verify(token)
        try:
            context.report(await self._sessions.check(claims.session_id, claims.user_id))
        except model.SessionUnknown as error:
            raise Unauthorized("The session has ended.") from error
        return claims

    async def of(self, work: Awaitable[Served[T]]) -> Served[T]:
        """The use case's outcome, its provenance noted. Raises ServiceError."""
        try:
            served = await work
        except ServiceError as error:
            raise self._from_peer(error) from error
        except model.DomainError as error:
            raise _refusal(error) from error
        except WriteRefused as error:
            raise write_refused(error, self._database.row, self._database.breaker.state.header) from error
        except QueueUnavailable as error:
            raise unasked(self._policies[REDIS.id]) from error
        except POLICY_FAILURES as error:
            raise translate(error, self._policies.get(error.name, self._database)) from error
        except Exception as error:
            if not self._is_outage(error):
                raise
            raise translate(error, self._database) from error
        context.report(served)
        return served

    def guard(self, work: Callable[[], T]) -> T:
        """The value of what needs no dependency. Raises ServiceError."""
        try:
            return work()
        except model.DomainError as error:
            raise _refusal(error) from error

    def _from_peer(self, error: ServiceError) -> ServiceError:
        return error if error.answered else translate(error, self._policies.get(error.row))


def _refusal(error: model.DomainError) -> ServiceError:
    match error:
        case model.NotAllowed():
            return Forbidden("This account is not yours.")
        case model.UserUnknown():
            return NotFound("There is no such account.")
        case model.RoomUnknown():
            return NotFound("There is no such room.")
        case model.CallUnknown():
            return NotFound("There is no such call.")
        case model.ReportUnknown():
            return NotFound("There is no such report.")
        case model.OperationUnknown():
            return NotFound("There is no such operation.")
        case model.EmailTaken():
            return Conflict("An account with this address exists already.", suggestion="Log in instead.")
        case model.KeyReused():
            return Conflict("This idempotency key was used for another request.", suggestion="Use a new key.")
        case model.WriteFailed():
            return Conflict("Your change could not be applied.", suggestion="Read the account again and repeat it.")
        case model.WrongLogin():
            return Unauthorized("Address and password do not belong together.")
        case model.TooManyStreams():
            return DependencyUnavailable("Too many live streams are open.", retry_after=10.0)
        case model.LiveUpdatesOff():
            return DependencyUnavailable("Live updates are off in emergency mode.", retry_after=5.0)
        case model.SessionUnknown():
            return Unauthorized("The session has ended.")
        case model.TooManyLogins(retry_after=seconds):
            return RateLimited("Too many failed logins for this account.", retry_after=seconds)
        case model.CursorInvalid():
            return ValidationFailed("The request is not valid.", details={"cursor": "is not one that a list gave"})
        case _:
            raise error
