"""Testing mode: back-off does not wait, attempts can be capped, and chance repeats itself.

It changes `resilience.ambient`, and so holds for the whole process: every thread, loop and task. Modes may nest and
overlap, in one thread or several; the one begun last is in force, and when the last one has ended everything is as it
was, in whatever order they ended.
"""

import functools
import inspect
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from resilience.ambient import RANDOM, TESTING
from resilience.forms import is_async

P = ParamSpec("P")
T = TypeVar("T")

_LOCK = threading.Lock()
_STARTED: "list[_Entry]" = []
"""The modes that have not ended, in the order in which they began."""


class _Entry:
    """One use of a mode, and what was in force below it."""

    __slots__ = ("below",)

    def __init__(self) -> None:
        self.below = (TESTING.attempts, TESTING.backoff, RANDOM.getstate())


class TestingMode:
    """What `testing_mode` gives: for `with`, or to decorate a function, sync or async. Can be used again and again."""

    __test__ = False  # pytest: not a class of tests
    __slots__ = ("_entries", "attempts", "backoff", "seed")

    def __init__(self, seed: int, attempts: int | None, backoff: bool) -> None:
        if attempts is not None and (isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1):
            raise ValueError(f"attempts must be a whole number of at least 1 or None, not {attempts!r}")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"seed must be a whole number, not {seed!r}")
        self.seed = seed
        self.attempts = attempts
        self.backoff = backoff
        self._entries: list[_Entry] = []

    def __enter__(self) -> "TestingMode":
        with _LOCK:
            entry = _Entry()
            _STARTED.append(entry)
            self._entries.append(entry)
            TESTING.attempts, TESTING.backoff = self.attempts, self.backoff
            RANDOM.seed(self.seed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with _LOCK:
            entry = self._entries.pop()
            at = _STARTED.index(entry)
            del _STARTED[at]
            if at < len(_STARTED):  # a later one is still in force, and now stands on what this one stood on
                _STARTED[at].below = entry.below
            else:
                TESTING.attempts, TESTING.backoff, chance = entry.below
                RANDOM.setstate(chance)

    def __call__(self, func: Callable[P, T]) -> Callable[P, T]:
        """Decorate `func`: testing mode is on while it runs. Raises TypeError for classes and generators."""
        if inspect.isclass(func) or inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
            raise TypeError(f"testing_mode decorates functions, not {func!r}; use `with testing_mode():` inside")
        wrapper: Any
        if is_async(func):

            @functools.wraps(func)
            async def in_mode(*args: Any, **kwargs: Any) -> Any:
                with self:
                    result: Any = func(*args, **kwargs)
                    return await result

            wrapper = in_mode
        else:

            @functools.wraps(func)
            def in_mode_sync(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return func(*args, **kwargs)

            wrapper = in_mode_sync
        result: Callable[P, T] = wrapper
        return result

    def __repr__(self) -> str:
        return f"testing_mode(seed={self.seed}, attempts={self.attempts}, backoff={self.backoff})"


def testing_mode(  # it is no test, for all that its name begins like one's
    *,
    seed: int = 0,  # noqa: PT028
    attempts: int | None = None,  # noqa: PT028
    backoff: bool = False,  # noqa: PT028
) -> TestingMode:
    """Testing mode for a block (`with testing_mode():`) or a function (`@testing_mode()`), sync or async.

    Process-wide. A mode inside another one replaces it whole until it ends.

    Args:
        seed: of the jitter and sampling of everything that was not given a `Random` of its own.
        attempts: no retry makes more; `None` leaves each its own number.
        backoff: whether the waits between attempts take place. They do not by default, and what a `Retry-After` asks
            for is not waited for either. Without them a fake clock stands still during retries.

    Raises:
        ValueError: `seed` or `attempts` is out of range.
    """
    return TestingMode(seed, attempts, backoff)


testing_mode.__test__ = False  # type: ignore[attr-defined]  # nor does pytest collect it
