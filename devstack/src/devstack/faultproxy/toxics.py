"""The toxics: named faults with typed attributes, and what a set of them means for one direction of one connection.

Names, attributes and units are Toxiproxy's: times in milliseconds, ``rate`` in KB/s, ``bytes`` in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Stream = Literal["upstream", "downstream"]

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "latency": ("latency", "jitter"),
    "timeout": ("timeout",),
    "reset_peer": ("timeout",),
    "bandwidth": ("rate",),
    "slow_close": ("delay",),
    "limit_data": ("bytes",),
}


class ToxicError(ValueError):
    """A toxic that cannot be: unknown type or stream, or an attribute that is no number of at least 0."""


@dataclass(frozen=True)
class Toxic:
    """One fault on one direction of a proxy. ``toxicity``: the share of connections it touches."""

    name: str
    type: str
    stream: Stream
    toxicity: float = 1.0
    attributes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, body: Mapping[str, Any], before: Toxic | None = None) -> Toxic:
        """From the API's JSON; ``before`` is the toxic that an update changes.

        Raises:
            ToxicError: see there.
        """
        kind = before.type if before else body.get("type")
        stream = before.stream if before else body.get("stream", "downstream")
        if not isinstance(kind, str) or kind not in ATTRIBUTES:
            raise ToxicError(f"invalid toxic type: {kind!r}; known are {', '.join(ATTRIBUTES)}")
        if stream not in ("upstream", "downstream"):
            raise ToxicError("stream was invalid, can be either upstream or downstream")
        name = before.name if before else body.get("name") or f"{kind}_{stream}"
        toxicity = _number(body.get("toxicity", before.toxicity if before else 1.0), "toxicity")
        given = {**(before.attributes if before else {}), **(body.get("attributes") or {})}
        attributes = {key: int(_number(given.get(key, 0), key)) for key in ATTRIBUTES[kind]}
        return cls(str(name), kind, stream, toxicity, attributes)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": self.type,
            "stream": self.stream,
            "toxicity": self.toxicity,
            "attributes": dict(self.attributes),
        }


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise ToxicError(f"{name} must be a number of at least 0")
    return value


@dataclass(frozen=True)
class Effect:
    """What the toxics of one direction come to; times in seconds, ``None``: not in effect."""

    latency: float = 0.0
    jitter: float = 0.0
    rate: float | None = None  # bytes/s
    close_delay: float = 0.0
    limit: int | None = None  # bytes of the connection's whole life
    silent: bool = False  # nothing passes
    close_after: float | None = None  # ... and the connection is closed then
    reset_after: float | None = None  # the connection is reset then

    @property
    def clear(self) -> bool:
        """Whether data passes untouched."""
        return self == CLEAR


CLEAR = Effect()


def effect_of(toxics: Iterable[Toxic]) -> Effect:
    """The sum of several toxics: latencies add up, the tightest limit wins."""
    latency = jitter = close_delay = 0.0
    rates: list[float] = []
    limits: list[int] = []
    closes: list[float] = []
    resets: list[float] = []
    silent = False
    for toxic in toxics:
        value = toxic.attributes
        match toxic.type:
            case "latency":
                latency += value["latency"] / 1000
                jitter += value["jitter"] / 1000
            case "bandwidth":
                rates.append(value["rate"] * 1024)
            case "slow_close":
                close_delay += value["delay"] / 1000
            case "limit_data":
                limits.append(value["bytes"])
            case "reset_peer":
                resets.append(value["timeout"] / 1000)
            case "timeout":
                silent = True
                closes += [value["timeout"] / 1000] if value["timeout"] else []
    return Effect(
        latency,
        jitter,
        min(rates, default=None),
        close_delay,
        min(limits, default=None),
        silent,
        min(closes, default=None),
        min(resets, default=None),
    )
