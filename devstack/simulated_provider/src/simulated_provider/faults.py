"""Faults that somebody has ordered, and how often each target was called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from simulated_provider.values import Call, Settings

KINDS: Final = {
    "slow": "the whole answer comes late",
    "slow_first_token": "a stream begins at once, its first token comes late; a whole answer comes late",
    "trickle": "each token comes late",
    "hang": "no answer",
    "refuse": "the connection is reset without an answer",
    "rate_limit": "429 with Retry-After and rate-limit headers",
    "rate_limit_no_hint": "429 without either",
    "exhausted": "a good answer whose rate-limit headers say that it was the last one",
    "quota": "the account's quota is used up",
    "error": "500, or another status",
    "overloaded": "529 of Anthropic, 503 of others",
    "unauthorized": "the key is refused",
    "bad_request": "400: the request is refused",
    "too_long": "400: longer than the model's context",
    "policy": "400: against the content policy",
    "unknown_model": "the model does not exist",
    "malformed": "200 with JSON that cannot be parsed",
    "empty": "200 with no choices, no content, no sound",
    "html": "200 with a web page",
    "cut": "the connection is closed in the middle",
    "stall": "nothing more comes in the middle",
    "error_event": "a stream tells of an error in the middle; 500 for a whole answer",
    "unfinished": "a stream ends regularly in the middle, without a finish reason",
}
LIMIT: Final = 100
"""Faults that may be ordered at once, and names that are counted."""
_BOUNDS: Final[Mapping[str, tuple[type, float, float]]] = {
    "seconds": (float, 0, 600),
    "retry_after": (float, 0, 86_400),
    "after_tokens": (int, 0, 10_000),
    "status": (int, 400, 599),
    "times": (int, 1, 1_000_000),
}
_SECONDS: Final = {"hang": 600.0, "stall": 600.0, "trickle": 0.1}


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to go wrong. ``times``: for so many calls, for ever when None (looking at the models never counts)."""

    fault: str
    seconds: float = 1.0
    retry_after: float = 5.0
    after_tokens: int = 3
    status: int = 500
    times: int | None = None


def parse_fault(data: object) -> Fault:
    """Raises ValueError, whose text says what is wrong."""
    if not isinstance(data, dict) or data.get("fault") not in KINDS:
        raise ValueError(f"'fault' must be one of {', '.join(KINDS)}")
    values = {name: number(name, data[name], *_BOUNDS[name]) for name in _BOUNDS if data.get(name) is not None}
    if unknown := data.keys() - _BOUNDS.keys() - {"fault"}:
        raise ValueError(f"unknown: {', '.join(sorted(map(str, unknown)))}")
    return Fault(data["fault"], **{"seconds": _SECONDS.get(data["fault"], 1.0), **values})


def number(name: str, value: object, kind: type, least: float, most: float) -> Any:
    """Raises ValueError."""
    wanted = int if kind is int else int | float
    if isinstance(value, bool) or not isinstance(value, wanted) or not least <= value <= most:
        raise ValueError(f"'{name}' must be a number from {least:g} to {most:g}")
    return kind(value)


def parse_settings(data: object, now: Settings) -> Settings:
    """The settings with some of them changed. Raises ValueError."""
    bounds: Mapping[str, tuple[type, float, float]] = {"token_delay": (float, 0, 60), "answer_tokens": (int, 0, 10_000)}
    if not isinstance(data, dict) or data.keys() - bounds.keys():
        raise ValueError(f"expected an object with {' and '.join(bounds)}")
    return replace(now, **{name: number(name, value, *bounds[name]) for name, value in data.items()})


class Faults:
    """The faults in force, by target."""

    def __init__(self, targets: Iterable[str]) -> None:
        self.targets = frozenset(targets)
        self._ordered: dict[str, Fault] = {}

    def order(self, target: str, fault: Fault) -> None:
        """Raises KeyError for a target that does not exist."""
        if target not in self.targets:
            raise KeyError(target)
        self._ordered[target] = fault

    def clear(self, target: str = "") -> None:
        """Ends the fault of a target, or all."""
        if target:
            self._ordered.pop(target, None)
        else:
            self._ordered.clear()

    def pick(self, call: Call) -> Fault | None:
        """The fault for this call, and one time less of it."""
        if not self._ordered:
            return None
        for target in call.targets:
            if (fault := self._ordered.get(target)) is not None:
                if fault.times is not None and call.kind != "models":
                    self._used(target, fault)
                return fault
        return None

    def _used(self, target: str, fault: Fault) -> None:
        left = (fault.times or 1) - 1
        if left:
            self._ordered[target] = replace(fault, times=left)
        else:
            del self._ordered[target]

    def shown(self) -> dict[str, Any]:
        return {target: asdict(fault) for target, fault in self._ordered.items()}


class Calls:
    """How often each name was called, in all and by kind.

    ``faulted``: how many of them went wrong by order; ``left``: how many callers did not wait for their answer.
    """

    def __init__(self) -> None:
        self._counted: dict[str, Counter[str]] = {}

    def count(self, call: Call, *, faulted: bool) -> None:
        counter = self._counted.get(call.name)
        if counter is None:
            if len(self._counted) >= LIMIT:
                return
            counter = self._counted[call.name] = Counter()
        counter["calls"] += 1
        counter[call.kind] += 1
        if faulted:
            counter["faulted"] += 1

    def left(self, call: Call) -> None:
        if (counter := self._counted.get(call.name)) is not None:
            counter["left"] += 1

    def clear(self) -> None:
        self._counted.clear()

    def shown(self) -> dict[str, dict[str, int]]:
        return {name: dict(counter) for name, counter in self._counted.items()}
