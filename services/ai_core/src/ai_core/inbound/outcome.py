"""From what a use case returned or raised to what a caller may see: the same for both doors.

Degradations go into the request's provenance, domain errors and failed dependencies become the platform's errors. What
policies raise by themselves is known to both doors already; any other exception is a defect and is left alone.
"""

from collections.abc import Awaitable
from typing import TypeVar

from ai_core.degradation import PROVIDERS
from ai_core.model import (
    AgentUnknown,
    ConversationUnknown,
    DomainError,
    IdTaken,
    Invalid,
    KeyReused,
    MemoryUnknown,
    ModelNotOffered,
    OperationUnknown,
    RequestRefused,
    TooManyAgents,
    TooManyMemories,
    WriteFailed,
)
from ai_core.ports import StoreUnavailable
from ai_core.usecases.chain import AllProvidersGone, StreamBroken
from resilience import QueueUnavailable, RowPolicy, Served, WriteRefused
from service_kit.context import bearer_token, report
from service_kit.errors import Conflict, DependencyUnavailable, NotFound, ServiceError, ValidationFailed, translate
from service_kit.refusals import unasked, write_refused
from service_kit.tokens import TokenVerifier

T = TypeVar("T")


class Outcome:
    """Knows who calls, and which policy stands behind a failed port."""

    def __init__(self, verifier: TokenVerifier, postgres: RowPolicy, redis: RowPolicy) -> None:
        self._verifier = verifier
        self._postgres = postgres
        self._redis = redis

    def caller(self) -> str:
        """The calling user's id. Raises Unauthorized."""
        return self._verifier.verify(bearer_token()).user_id

    async def of(self, work: Awaitable[Served[T]]) -> T:
        """The use case's value. Raises ServiceError."""
        return (await self.served(work)).value

    async def served(self, work: Awaitable[Served[T]]) -> Served[T]:
        """The use case's outcome, its provenance noted. Raises ServiceError."""
        try:
            served = await work
        except DomainError as error:
            raise _refusal(error) from error
        except StoreUnavailable as error:
            raise translate(error, self._postgres) from error
        except (AllProvidersGone, StreamBroken) as error:
            raise without_providers(error) from error
        except WriteRefused as error:
            circuit = self._postgres.breaker.state.header
            raise write_refused(error, self._postgres.row, circuit) from error
        except QueueUnavailable as error:
            raise unasked(self._redis) from error
        report(served)
        return served


def without_providers(error: AllProvidersGone | StreamBroken) -> ServiceError:
    """Row A2's error: no provider answered, or the one that did broke off, and how much of it was sent."""
    if isinstance(error, AllProvidersGone):
        text, details = PROVIDERS.user_text, None
    else:
        text, details = f"The AI provider broke off its answer: {error}.", {"sent_characters": error.sent}
    return DependencyUnavailable(text, retry_after=error.retry_after, row=PROVIDERS.id, details=details)


def _refusal(error: DomainError) -> ServiceError:
    match error:
        case Invalid(fields=fields):
            return ValidationFailed("The request is not valid.", details=fields)
        case RequestRefused():
            return ValidationFailed(str(error))
        case AgentUnknown():
            return NotFound("There is no such agent.")
        case ModelNotOffered():
            return Conflict("The provider does not offer this agent's model.", suggestion="Change the agent's model.")
        case ConversationUnknown():
            return NotFound("There is no such conversation.")
        case OperationUnknown():
            return NotFound("There is no such operation.")
        case WriteFailed():
            return Conflict("Your change could not be applied.", suggestion="Read it again and repeat the change.")
        case MemoryUnknown():
            return NotFound("There is no such memory.")
        case KeyReused():
            return Conflict("This idempotency key was used for another request.")
        case IdTaken():
            return Conflict("This id belongs to something else.")
        case TooManyAgents():
            return Conflict("You have as many agents as one may have. Delete one first.")
        case TooManyMemories():
            return Conflict("You have as many memories as one may have. Delete one first.")
        case _:
            raise error
