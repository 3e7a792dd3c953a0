"""The ways in which a guarded call is written, each as a loop to time.

The loops are written out, one for each shape, because a wrapper that made them alike would cost as much as what
is measured. Every loop ends with a turn of the event loop inside the timed part: timers that a call made and
cancelled are cleaned up there, and that belongs to the call's price. The same is in the bare loop that is subtracted.

Time is the thread's CPU time: the machine is shared, and waiting for a core says nothing about a library.
"""

# ruff: noqa: SIM105 - a `suppress` around each call would be measured too

from __future__ import annotations

from asyncio import sleep
from collections.abc import Awaitable, Callable
from itertools import repeat
from time import thread_time_ns
from types import FunctionType
from typing import Any, NamedTuple

Loop = Callable[[Any, Any, int], Awaitable[int]]
"""`await loop(target, argument, count)`: nanoseconds for `count` calls."""


class Shape(NamedTuple):
    """`loop` times calls that succeed, `rejected` calls that raise (raising and catching included), and
    `once(target, argument, *args)` makes one call."""

    name: str
    loop: Loop
    rejected: Loop | None
    once: Callable[..., Awaitable[Any]]


class Form(NamedTuple):
    """A shape and what it is applied to. `argument` is the guarded function where the shape passes it."""

    shape: Shape
    target: Any
    argument: Any = None
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or self.shape.name

    def call(self, *args: Any) -> Awaitable[Any]:
        """One call, with `args` for the guarded function."""
        return self.shape.once(self.target, self.argument, *args)


def fresh(loop: Loop) -> Loop:
    """A copy of its own for whoever is measured: CPython specialises code to what runs through it, and nobody should
    run through code that was specialised to somebody else."""
    assert isinstance(loop, FunctionType)
    copy: Loop = FunctionType(loop.__code__.replace(), loop.__globals__, loop.__name__)
    return copy


# -- await f()


async def _plain(call: Any, _: Any, count: int) -> int:
    begun = thread_time_ns()
    for _ in repeat(None, count):
        await call()
    await sleep(0)
    return thread_time_ns() - begun


async def _plain_rejected(call: Any, _: Any, count: int) -> int:
    begun = thread_time_ns()
    for _ in repeat(None, count):
        try:
            await call()
        except Exception:  # noqa: BLE001
            pass
    await sleep(0)
    return thread_time_ns() - begun


async def _plain_once(call: Any, _: Any, *args: Any) -> Any:
    return await call(*args)


DECORATED = Shape("decorator", _plain, _plain_rejected, _plain_once)


# -- await guard.call(f)


async def _passing(call: Any, argument: Any, count: int) -> int:
    begun = thread_time_ns()
    for _ in repeat(None, count):
        await call(argument)
    await sleep(0)
    return thread_time_ns() - begun


async def _passing_rejected(call: Any, argument: Any, count: int) -> int:
    begun = thread_time_ns()
    for _ in repeat(None, count):
        try:
            await call(argument)
        except Exception:  # noqa: BLE001
            pass
    await sleep(0)
    return thread_time_ns() - begun


async def _passing_once(call: Any, argument: Any, *args: Any) -> Any:
    return await call(argument, *args)


CALL = Shape("call", _passing, _passing_rejected, _passing_once)


# -- await guard.call(f, key)


async def _keyed(call: Any, argument: Any, count: int) -> int:
    first, second = argument
    begun = thread_time_ns()
    for _ in repeat(None, count):
        await call(first, second)
    await sleep(0)
    return thread_time_ns() - begun


async def _keyed_rejected(call: Any, argument: Any, count: int) -> int:
    first, second = argument
    begun = thread_time_ns()
    for _ in repeat(None, count):
        try:
            await call(first, second)
        except Exception:  # noqa: BLE001
            pass
    await sleep(0)
    return thread_time_ns() - begun


async def _keyed_once(call: Any, argument: Any, *args: Any) -> Any:
    return await call(*argument, *args)


KEYED_CALL = Shape("call with key", _keyed, _keyed_rejected, _keyed_once)


# -- async with guard: await f()


async def _block(guard: Any, function: Any, count: int) -> int:
    begun = thread_time_ns()
    for _ in repeat(None, count):
        async with guard:
            await function()
    await sleep(0)
    return thread_time_ns() - begun


async def _block_rejected(guard: Any, function: Any, count: int) -> int:
    begun = thread_time_ns()
    for _ in repeat(None, count):
        try:
            async with guard:
                await function()
        except Exception:  # noqa: BLE001
            pass
    await sleep(0)
    return thread_time_ns() - begun


async def _block_once(guard: Any, function: Any, *args: Any) -> Any:
    async with guard:
        return await function(*args)


BLOCK = Shape("block", _block, _block_rejected, _block_once)


# -- async with make(): await f()


async def _new_block(make: Any, function: Any, count: int) -> int:
    begun = thread_time_ns()
    for _ in repeat(None, count):
        async with make():
            await function()
    await sleep(0)
    return thread_time_ns() - begun


async def _new_block_once(make: Any, function: Any, *args: Any) -> Any:
    async with make():
        return await function(*args)


NEW_BLOCK = Shape("block", _new_block, None, _new_block_once)


# -- with make(): await f()


async def _sync_block(make: Any, function: Any, count: int) -> int:
    begun = thread_time_ns()
    for _ in repeat(None, count):
        with make():
            await function()
    await sleep(0)
    return thread_time_ns() - begun


async def _sync_block_rejected(make: Any, function: Any, count: int) -> int:
    begun = thread_time_ns()
    for _ in repeat(None, count):
        try:
            with make():
                await function()
        except Exception:  # noqa: BLE001
            pass
    await sleep(0)
    return thread_time_ns() - begun


async def _sync_block_once(make: Any, function: Any, *args: Any) -> Any:
    with make():
        return await function(*args)


SYNC_BLOCK = Shape("with", _sync_block, _sync_block_rejected, _sync_block_once)


# -- await gate(); await f()


async def _gate(gate: Any, function: Any, count: int) -> int:
    begun = thread_time_ns()
    for _ in repeat(None, count):
        await gate()
        await function()
    await sleep(0)
    return thread_time_ns() - begun


async def _gate_once(gate: Any, function: Any, *args: Any) -> Any:
    await gate()
    return await function(*args)


GATE = Shape("wait, then call", _gate, None, _gate_once)


# -- gate(); await f()


async def _sync_gate(gate: Any, function: Any, count: int) -> int:
    begun = thread_time_ns()
    for _ in repeat(None, count):
        gate()
        await function()
    await sleep(0)
    return thread_time_ns() - begun


async def _sync_gate_once(gate: Any, function: Any, *args: Any) -> Any:
    gate()
    return await function(*args)


SYNC_GATE = Shape("ask, then call", _sync_gate, None, _sync_gate_once)
