"""What a library looks like to the benchmark: the rows are methods, and what a library lacks it does not define."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from datetime import timedelta
from importlib import import_module
from typing import Any, ClassVar

from benchmarks.resilience.shapes import DECORATED, Form

Function = Callable[..., Awaitable[Any]]
Listener = Callable[[], None]
Forms = tuple[Form, ...]

NEVER = 10**9
"""A threshold that is never reached."""
WINDOW = 100_000
"""Calls in a window that forgets none while counts are checked."""
LIMIT, PERIOD = 10**9, 10**6
"""So many calls per so many seconds: calls come faster than they are allowed to for long, so that the limiter has to
count, but the burst that it allows is never used up."""
SLOTS = 10
SECONDS = 5.0
"""A timeout that is never reached."""
ATTEMPTS = 3


class Library:
    """One library under measurement. Deriving classes are adapters only: they hold no code of the library.

    A breaker is made by `breaker(seconds, threshold, listener)`; what is None stays at the library's default. `forms`
    gives every way of calling through it that may be the fastest. Rows beyond the breaker are methods named after
    the row, which take the guarded function and return forms.
    """

    name: ClassVar[str]
    """As on the package index."""
    imports: ClassVar[str]
    """The modules that somebody who uses all that is measured here imports."""
    notes: ClassVar[str] = ""
    keyed: ClassVar[bool] = False
    """One object for all keys: there are no idle breakers to weigh."""
    composed: ClassVar[bool] = False
    """Several libraries, put together by hand."""
    floors: ClassVar[frozenset[str]] = frozenset()
    """Rows in which it is no peer but what the work costs without any library."""

    breaker: Callable[..., Any]
    forms: Callable[..., Forms]
    sync_breaker: Callable[..., Any]
    """Like `breaker`, where that for threads is another one."""
    state_of: Callable[..., Any]

    def __init__(self) -> None:
        for module in self.imports.split():
            import_module(module)

    @classmethod
    def statement(cls) -> str:
        """What such a user writes at the top."""
        return f"import {', '.join(cls.imports.split())}"

    @classmethod
    def has(cls, what: str) -> bool:
        """Whether the library has the method that a row needs."""
        method = getattr(cls, {"closed": "forms", "open": "forms"}.get(what, what), None)
        return callable(method) and (what != "idle" or (cls.has("forms") and not cls.keyed))

    async def closed(self, function: Function) -> Forms:
        """Through a breaker with the library's own settings."""
        return self.forms(await resolved(self.breaker()), function)

    def idle(self, _name: str) -> Any:
        """A breaker as it is kept for a dependency that is not called at the moment."""
        return self.breaker()

    def state(self, breaker: Any) -> str:
        """closed, open or half-open."""
        state = self.state_of(breaker)
        word = str(getattr(state, "value", state)).lower()
        if "half" in word or word == "recovering":
            return "half-open"
        return "open" if word in ("open", "opened", "failing", "state_open") else "closed"


def breaker_for_threads(library: Library, **settings: Any) -> Any:
    """The breaker that threads may share."""
    return getattr(library, "sync_breaker", library.breaker)(**settings)


def given(**settings: Any) -> dict[str, Any]:
    """Those settings that are not None."""
    return {name: value for name, value in settings.items() if value is not None}


def span(seconds: float | None) -> timedelta | None:
    """For libraries that want their times as timedelta."""
    return None if seconds is None else timedelta(seconds=seconds)


def ignoring(listener: Listener | None) -> Callable[..., None] | None:
    """`listener` for libraries that tell theirs what happened."""
    return None if listener is None else lambda *_args, **_settings: listener()


async def resolved(value: Any) -> Any:
    """`value`, awaited if it has to be."""
    return await value if inspect.isawaitable(value) else value


def substitute(*_args: Any, **_settings: Any) -> None:
    """The fallback, for libraries that take a function."""


async def substitute_async(*_args: Any, **_settings: Any) -> None:
    """The fallback, for libraries that take only a coroutine function."""


def decorated(function: Function) -> Forms:
    """The one form of libraries that only decorate."""
    return (Form(DECORATED, function),)
