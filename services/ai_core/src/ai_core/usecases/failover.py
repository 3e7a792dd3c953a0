"""What happens after a failed attempt: the one table of what another provider could survive, and what it could not."""

from enum import Enum

from ai_core.model import DomainError, TooLong
from ai_core.ports import CannotCarry, ModelUnknown, ProviderBusy, ProviderFailed
from ai_core.query import Link
from resilience import BulkheadFull, CallTimeout, CircuitBreakerOpen


class Move(Enum):
    """Where a query goes after an error."""

    NEXT = "the next link"
    LARGER = "the next link with a larger window, else back"
    BACK = "straight back to the caller"


TABLE: tuple[tuple[type[Exception], Move], ...] = (
    (TooLong, Move.LARGER),
    (DomainError, Move.BACK),  # a bad request or one against the provider's policy: refused by everybody
    (ProviderFailed, Move.NEXT),  # unreachable, 408, 409, 425, 5xx, our key or quota, no useful answer
    (CallTimeout, Move.NEXT),
    (ProviderBusy, Move.NEXT),  # 429
    (ModelUnknown, Move.NEXT),
    (CannotCarry, Move.NEXT),
    (CircuitBreakerOpen, Move.NEXT),
    (BulkheadFull, Move.NEXT),
    (Exception, Move.NEXT),  # what an adapter lets through is no reason to leave the caller without an answer
)
"""The first line that fits holds."""


def move_after(error: Exception) -> Move:
    """What the table says."""
    return next(move for kind, move in TABLE if isinstance(error, kind))


WINDOWS = {
    "gpt-4": 8_192,
    "gpt-4-32k": 32_768,
    "gpt-4-turbo": 128_000,
    "gpt-4o": 128_000,
    "gpt-4.1": 1_047_576,
    "gpt-5": 400_000,
    "gpt-3.5-turbo": 16_385,
    "o1": 200_000,
    "o3": 200_000,
    "o4": 200_000,
    "claude": 200_000,
}
"""Tokens of context by the beginning of a model's name (the vendors' model pages)."""


def window(link: Link) -> int:
    """Tokens that the model takes, by the longest name that fits; 0 when it is not known."""
    known = [name for name in WINDOWS if link.model == name or link.model.startswith((f"{name}-", f"{name}."))]
    return WINDOWS[max(known, key=len)] if known else 0
