"""The forms in which a mechanism is used: `await m.call(fn, ...)`, `m.call_sync(fn, ...)` and `@m`.

A mechanism derives from `Guard` and writes the first two; the decorator follows from them. What can also guard a
block of code has `async with` and `with` of its own.
"""

import functools
import inspect
from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar, overload

P = ParamSpec("P")
T = TypeVar("T")


def is_async(func: Callable[..., Any]) -> bool:
    """Whether calling `func` gives an awaitable: async functions, partials of them, objects that are called as such."""
    while isinstance(func, functools.partial):
        func = func.func
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(type(func), "__call__", None))  # noqa: B004


def is_awaitable(result: object) -> bool:
    """`inspect.isawaitable` with the usual case first; on the hot path test `type(result) is CoroutineType` before."""
    return type(result) is CoroutineType or inspect.isawaitable(result)


class Guard:
    """Gives a mechanism its decorator form. The wrapper is async for an async function and sync for a sync one."""

    __slots__ = ()

    @overload
    async def call(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T: ...
    @overload
    async def call(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...
    async def call(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `func`, sync or async, guarded."""
        raise NotImplementedError

    def call_sync(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call the sync `func`, guarded, from code without an event loop."""
        raise NotImplementedError

    def __call__(self, func: Callable[P, T]) -> Callable[P, T]:
        """Decorate `func`: every call of it is guarded."""
        wrapper: Any
        if is_async(func):

            @functools.wraps(func)
            async def guarded(*args: Any, **kwargs: Any) -> Any:
                return await self.call(func, *args, **kwargs)

            wrapper = guarded
        else:

            @functools.wraps(func)
            def guarded_sync(*args: Any, **kwargs: Any) -> Any:
                return self.call_sync(func, *args, **kwargs)

            wrapper = guarded_sync
        result: Callable[P, T] = wrapper
        return result
