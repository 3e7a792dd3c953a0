"""The forms in which a mechanism is used: `await m.call(fn, ...)`, `m.call_sync(fn, ...)` and `@m`.

A mechanism derives from `Guard` and writes the first two; the decorator follows from them. What can also guard a
block of code has `async with` and `with` of its own.
"""

import functools
import inspect
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from types import GeneratorType, MethodType
from typing import Any, Final, ParamSpec, TypeVar, overload

P = ParamSpec("P")
T = TypeVar("T")


def is_async(func: Callable[..., Any]) -> bool:
    """Whether calling `func` gives an awaitable: async functions, partials of them, objects that are called as such."""
    while isinstance(func, functools.partial):
        func = func.func
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(type(func), "__call__", None))  # noqa: B004


def is_awaitable(result: object) -> bool:
    """`inspect.isawaitable`, but asked once per type; on the hot path test `type(result) is CoroutineType` before."""
    known = _AWAITABLE.get(type(result))
    return _learn(result) if known is None else known


_AWAITABLE: dict[type, bool] = {}
_MAX_TYPES: Final = 1_024


def _learn(result: object) -> bool:
    answer = isawaitable(result)
    if type(result) is not GeneratorType:  # some are, some are not
        if len(_AWAITABLE) >= _MAX_TYPES:
            _AWAITABLE.clear()  # types made at run time must not pile up
        _AWAITABLE[type(result)] = answer
    return answer


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
        guarded: Any = Guarded(self.call if is_async(func) else self.call_sync, func)
        result: Callable[P, T] = functools.update_wrapper(guarded, func)
        return result


class Guarded(functools.partial):  # type: ignore[type-arg]
    """A decorated function or method. A partial adds nothing to a call's cost, and `inspect` knows if it is async."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else MethodType(self, instance)
