"""A way to Redis for what only helps: nobody waits longer than ``PATIENCE``, even on the way to an open circuit.

The commands of all callers go out together in one pipeline, which has a task of its own, and is given up by the callers
long before the row's limit. After a failure it is left out for a moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from resilience import Clock, without_deadline
from service_kit.redis_client import AWAY

PATIENCE: Final = 0.15
"""Seconds that a caller waits for Redis: it answers in a hundredth of that, or is in trouble."""
LEFT_OUT: Final = 1.0
"""Seconds without a command after a failure."""
BATCH: Final = 128
MAX_WAITING: Final = 1_024
"""Callers that may wait for one pipeline; the others do without."""

Command = tuple[Any, ...]


class Unavailable(Exception):
    """Redis was not asked, or did not answer in time."""


class Pipelines:
    """Sends the commands of many callers together. ``call`` is the policy's; None where there is no Redis at all."""

    def __init__(self, client: Redis | None, call: Callable[..., Awaitable[Any]], clock: Clock) -> None:
        self._client = client
        self._call = call
        self._clock = clock
        self._waiting: list[tuple[Sequence[Command], asyncio.Future[list[Any]]]] = []
        self._task: asyncio.Task[None] | None = None
        self._since = 0.0
        self._left_out_until = 0.0

    @property
    def away(self) -> bool:
        """Whether asking would not help now."""
        now = self._clock.monotonic()
        late = self._task is not None and now - self._since > PATIENCE
        return self._client is None or late or now < self._left_out_until or len(self._waiting) >= MAX_WAITING

    async def run(self, *commands: Command) -> list[Any]:
        """The answers to the commands, in order. Raises Unavailable."""
        if self.away:
            raise Unavailable
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((commands, future))
        if self._task is None:
            self._since = self._clock.monotonic()
            with without_deadline():
                self._task = asyncio.get_running_loop().create_task(self._send_all(), name="answers")
        timer = self._clock.call_later(PATIENCE, _expire, future)
        try:
            return await future
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Waits for nothing."""
        if self._task is not None:
            self._task.cancel()

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                self._since = self._clock.monotonic()
                await self._send(batch)
        finally:
            self._task = None
            self._refuse(self._waiting)
            self._waiting = []

    async def _send(self, batch: list[tuple[Sequence[Command], asyncio.Future[list[Any]]]]) -> None:
        commands = [command for some, _ in batch for command in some]
        try:
            answers = iter(await self._call(self._execute, commands))
        except AWAY:
            self._left_out_until = self._clock.monotonic() + LEFT_OUT
            self._refuse(batch)
            self._refuse(self._waiting)
            self._waiting = []
            return
        for some, future in batch:
            found = [next(answers) for _ in some]
            if not future.done():
                _settle(future, found)

    async def _execute(self, commands: list[Command]) -> list[Any]:
        assert self._client is not None  # noqa: S101 - for the type checker: `run` has looked
        if len(commands) == 1:  # the usual case of a lonely caller, at half the price
            try:
                return [await self._client.execute_command(*commands[0], get=True)]  # type: ignore[no-untyped-call]
            except ResponseError as error:
                return [error]
        async with self._client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command, get=True)  # of SET: what was there before
            return list(await pipe.execute(raise_on_error=False))

    @staticmethod
    def _refuse(batch: list[tuple[Sequence[Command], asyncio.Future[list[Any]]]]) -> None:
        for _, future in batch:
            _expire(future)


def _expire(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(Unavailable())


def _settle(future: asyncio.Future[list[Any]], found: list[Any]) -> None:
    """One command that Redis refused spoils the caller's others as well."""
    if any(isinstance(one, Exception) for one in found):
        future.set_exception(Unavailable())
    else:
        future.set_result(found)
