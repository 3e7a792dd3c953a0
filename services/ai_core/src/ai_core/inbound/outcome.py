"""From what a use case returned or raised to what a caller may see: the same for both doors.

Degradations go into the request's provenance, domain errors and failed dependencies become the platform's errors. What
policies raise by themselves is known to both doors already; any other exception is a defect and is left alone.
"""

from collections.abc import Awaitable
from typing import TypeVar

from ai_core.model import (
    AgentUnknown,
    DomainError,
    IdTaken,
    Invalid,
    KeyReused,
    MemoryUnknown,
    ModelNotOffered,
    RequestRefused,
    TooManyAgents,
    TooManyMemories,
)
from ai_core.ports import ProviderBusy, ProviderFailed, StoreUnavailable
from resilience import RowPolicy, Served
from service_kit.context import bearer_token, report
from service_kit.errors import Conflict, NotFound, ServiceError, ValidationFailed, translate
from service_kit.tokens import TokenVerifier

T = TypeVar("T")


class Outcome:
    """Knows who calls, and which policy stands behind a failed port."""

    def __init__(self, verifier: TokenVerifier, postgres: RowPolicy, providers: RowPolicy) -> None:
        self._verifier = verifier
        self._postgres = postgres
        self._providers = providers

    def caller(self) -> str:
        """The calling user's id. Raises Unauthorized."""
        return self._verifier.verify(bearer_token()).user_id

    async def of(self, served: Awaitable[Served[T]]) -> T:
        """The use case's value. Raises ServiceError."""
        try:
            return report(await served)
        except DomainError as error:
            raise _refusal(error) from error
        except StoreUnavailable as error:
            raise translate(error, self._postgres) from error
        except (ProviderFailed, ProviderBusy) as error:
            raise translate(error, self._providers) from error


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
