"""What belongs to the request being answered: its id, its caller's token, its trace, and its degradations.

One object in one context variable, made by the HTTP or gRPC edge. Application code reports what was served by a
fallback with `report`; only the edge turns that into headers or metadata.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from resilience.outcome import Degradation, Served

T = TypeVar("T")

MAX_REQUEST_ID = 128
_SANE_ID = re.compile(rf"[\x21-\x7e]{{1,{MAX_REQUEST_ID}}}")
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class RequestContext:
    """The state of one request. Mutable on purpose: work in child tasks adds to the same list."""

    __slots__ = (
        "attend",
        "bearer",
        "degradations",
        "error",
        "headers",
        "rearm",
        "request_id",
        "shape",
        "trace_id",
        "traceparent",
    )

    def __init__(self, request_id: str, bearer: str = "", traceparent: str = "") -> None:
        self.request_id = request_id
        self.bearer = bearer
        self.traceparent = traceparent
        self.trace_id = traceparent[3:35] if traceparent else ""
        self.degradations: list[Degradation] = []
        self.headers: list[tuple[bytes, bytes]] | None = None  # for the answer, whatever it will be
        self.error = ""  # the reason of the failed answer, for metrics
        self.rearm: Callable[[float | None], None] | None = None
        self.attend: Callable[[], None] | None = None
        self.shape: Callable[[Any], Any] | None = None  # from an error to its response, where that is no problem+json


_current: ContextVar[RequestContext | None] = ContextVar("request", default=None)
bind = _current.set
current = _current.get


def new_request_id() -> str:
    """128 random bits, in hexadecimal."""
    return secrets.token_hex(16)


def sane_request_id(candidate: str) -> str:
    """The caller's id when it is 1 to 128 visible ASCII characters, else a new one."""
    return candidate if _SANE_ID.fullmatch(candidate) else new_request_id()


def sane_traceparent(candidate: str) -> str:
    """The W3C trace context when it is one of version 00, else ""."""
    return candidate if _TRACEPARENT.fullmatch(candidate) else ""


def request_id() -> str:
    """The current request's id; "" outside a request."""
    state = _current.get()
    return state.request_id if state else ""


def bearer_token() -> str:
    """The caller's bearer token, to be passed on; "" when there is none."""
    state = _current.get()
    return state.bearer if state else ""


def degradations() -> list[Degradation]:
    """The degradations reported so far; outside a request an empty list that nobody reads."""
    state = _current.get()
    return state.degradations if state else []


def degrade(*found: Degradation) -> None:
    """Add degradations to the answer's provenance; one that is already there is not repeated."""
    known = degradations()
    known.extend(one for one in found if one not in known)


def report(served: Served[T]) -> T:
    """The value of an outcome, with its provenance added to the current request's."""
    if served.degradations:
        degrade(*served.degradations)
    return served.value


def add_header(name: str, value: str) -> None:
    """A header of the answer to the current HTTP request, also of a failed one. ASCII only."""
    state = _current.get()
    if state is not None:
        state.headers = [*(state.headers or ()), (name.encode("ascii").lower(), value.encode("ascii"))]


def allow(seconds: float | None) -> None:
    """Give the current request another time limit, counted from now; None: no limit (event streams)."""
    state = _current.get()
    if state and state.rearm:
        state.rearm(seconds)


def attend() -> None:
    """Cancel the work for the current HTTP request when its client leaves before an answer has begun.

    For what is worth nothing to anybody else and costs something, such as a call of a model. Not for writes: whether
    they happened must not hang on whether somebody waits. A call over gRPC is cancelled with its caller in any case.
    """
    state = _current.get()
    if state and state.attend:
        state.attend()
