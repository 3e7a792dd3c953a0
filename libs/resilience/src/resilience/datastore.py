"""Ask the source; when it fails, its last answer if that is not too old: a `StaleCache` that always tries first.

One store may serve a whole process: it is safe between threads and event loops. Each store remembers for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.events import Events
from resilience.forms import is_async, is_awaitable
from resilience.outcome import Served
from resilience.stale import StaleCache

if TYPE_CHECKING:
    from resilience.stale import Errors

T = TypeVar("T")


class CachedDataStore:
    """The last good answers of any number of sources; the `max_entries` most recently used are kept.

    What the source answers is never hidden by a copy: errors such as "not found" or "forbidden" are raised as they are
    (`answers`, as for `StaleCache`). Those that say that the value is `gone` also drop its copy.

    Args:
        timeout: seconds after which a source counts as failed; without it, the source has to be bounded by other means.
        name: for events and for the degradation in what `serve` returns.

    Raises:
        ValueError: a setting is out of range; the text names it.
    """

    __slots__ = ("_cache", "timeout")

    def __init__(
        self,
        *,
        max_entries: int = 1_000,
        timeout: float | None = None,
        answers: Errors | None = None,
        gone: Errors = (),
        name: str = "cached-data-store",
        clock: Clock = SYSTEM_CLOCK,
        events: Events | None = None,
    ) -> None:
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
        self.timeout = timeout
        self._cache: StaleCache[Any] = StaleCache(
            name,
            max_age=0.0,
            max_entries=max_entries,
            negative=gone,
            negative_max_age=0.0,
            answers=answers,
            clock=clock,
            events=events,
        )

    def __len__(self) -> int:
        return len(self._cache)

    @overload
    async def get_with_fallback(
        self, key: Hashable, primary_func: Callable[[], Awaitable[T]], max_age_seconds: float = 300.0
    ) -> T: ...
    @overload
    async def get_with_fallback(
        self, key: Hashable, primary_func: Callable[[], T], max_age_seconds: float = 300.0
    ) -> T: ...
    async def get_with_fallback(
        self, key: Hashable, primary_func: Callable[[], Any], max_age_seconds: float = 300.0
    ) -> Any:
        """What `primary_func` returns; when it fails, what it last returned for `key` at most `max_age_seconds` ago.

        An async function runs in the caller's own task. A sync one runs in a thread (`asyncio.to_thread`), for it may
        block; an awaitable that it returns is awaited here. It must not begin tasks, as a thread has no event loop.
        Of a `Served` that it returns the value is taken; one from a fallback is passed on but not remembered.

        Raises:
            Exception: the error of `primary_func`: it was an answer, or nothing young enough is remembered.
        """
        return (await self.serve(key, primary_func, max_age_seconds)).value

    @overload
    async def serve(
        self, key: Hashable, primary_func: Callable[[], Awaitable[T]], max_age_seconds: float = 300.0
    ) -> Served[T]: ...
    @overload
    async def serve(
        self, key: Hashable, primary_func: Callable[[], T], max_age_seconds: float = 300.0
    ) -> Served[T]: ...
    async def serve(
        self, key: Hashable, primary_func: Callable[[], Any], max_age_seconds: float = 300.0
    ) -> Served[Any]:
        """`get_with_fallback` that tells: a remembered answer is `degraded` and says from when it is."""
        load = primary_func
        if not is_async(primary_func):
            load = lambda: _in_thread(primary_func)  # noqa: E731
        return await self._cache.source_first(key, load, max_age=max_age_seconds, timeout=self.timeout)

    def get_with_fallback_sync(self, key: Hashable, primary_func: Callable[[], T], max_age_seconds: float = 300.0) -> T:
        """`get_with_fallback` for code without an event loop; the store's `timeout` cannot interrupt it."""
        return self.serve_sync(key, primary_func, max_age_seconds).value

    def serve_sync(self, key: Hashable, primary_func: Callable[[], T], max_age_seconds: float = 300.0) -> Served[T]:
        """`serve` for code without an event loop; the store's `timeout` cannot interrupt it."""
        return self._cache.source_first_sync(key, primary_func, max_age=max_age_seconds)

    def invalidate(self, key: Hashable) -> bool:
        """Forget `key`, as after a write; whether it was remembered."""
        return self._cache.invalidate(key)

    def clear(self) -> None:
        """Forget everything."""
        self._cache.clear()


async def _in_thread(func: Callable[[], Any]) -> Any:
    value = await asyncio.to_thread(func)
    return await value if is_awaitable(value) else value
