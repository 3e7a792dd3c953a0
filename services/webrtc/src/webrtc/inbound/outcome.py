"""From what a use case returned or raised to what a caller may see: the same for both doors.

Degradations go into the request's provenance, domain errors and failed dependencies become the platform's errors. What
policies raise by themselves is known to both doors already; any other exception is a defect and is left alone.
"""

from collections.abc import Awaitable
from typing import TypeVar

from resilience import RowPolicy, Served
from service_kit.context import bearer_token, report
from service_kit.errors import (
    Conflict,
    DependencyUnavailable,
    Forbidden,
    NotFound,
    ServiceError,
    ValidationFailed,
    translate,
)
from service_kit.tokens import TokenVerifier
from webrtc.model import (
    CallUnknown,
    DomainError,
    Invalid,
    NoSuchParticipant,
    NotOwner,
    RoomElsewhere,
    RoomUnknown,
    TooManyRooms,
)
from webrtc.ports import HistoryUnavailable, StoreUnavailable

T = TypeVar("T")


class Outcome:
    """Knows who calls, and which policy stands behind a failed port."""

    def __init__(self, verifier: TokenVerifier, redis: RowPolicy, history: RowPolicy | None = None) -> None:
        self._verifier = verifier
        self._redis = redis
        self._history = history

    def caller(self) -> str:
        """The calling user's id. Raises Unauthorized."""
        return self._verifier.verify(bearer_token()).user_id

    def told(self, served: Served[T]) -> T:
        """The value of what needed no waiting."""
        return report(served)

    async def of(self, served: Awaitable[Served[T]]) -> T:
        """The use case's value. Raises ServiceError."""
        try:
            return report(await served)
        except DomainError as error:
            raise _refusal(error) from error
        except StoreUnavailable as error:
            raise translate(error, self._redis) from error
        except HistoryUnavailable as error:
            raise translate(error, self._history) from error


def _refusal(error: DomainError) -> ServiceError:
    match error:
        case Invalid(fields=fields):
            return ValidationFailed("The request is not valid.", details=fields)
        case RoomUnknown():
            return NotFound("There is no such room.")
        case CallUnknown():
            return NotFound("There is no such call.")
        case NotOwner():
            return Forbidden("Only the room's owner may do this.")
        case NoSuchParticipant():
            return NotFound("There is no such participant.")
        case RoomElsewhere(retry_after=seconds):
            text = "The room is on another instance, which cannot be reached now."
            return DependencyUnavailable(text, retry_after=seconds)
        case TooManyRooms():
            return Conflict("You have as many rooms as one may have. Delete one first.")
        case _:
            raise error
