"""Giving an answer, and giving it wrong."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from simulated_provider.faults import Fault
from simulated_provider.server import Exchange
from simulated_provider.values import Answer, Call, Dialect, Events, Plain, Settings

SSE: Final = "text/event-stream"
PAGE: Final = b"<!doctype html><title>Simulated</title><p>Welcome to the captive portal."
_BUNCH: Final = 16
"""Tokens that are sent together when they need not be apart."""


def at_once(exchange: Exchange, answer: Answer) -> None:
    """The answer, as fast as it can be."""
    if isinstance(answer, Plain):
        exchange.answer(answer.status, answer.body, answer.content_type, answer.headers)
        return
    tokens = answer.tokens
    exchange.begin(SSE, answer.headers, answer.opening + b"".join(tokens[:1]))
    for start in range(1, len(tokens), _BUNCH):
        exchange.part(b"".join(tokens[start : start + _BUNCH]))
    exchange.end(answer.closing)


async def in_time(exchange: Exchange, answer: Answer, delay: float, first: float = 0.0) -> None:
    """The answer, with a ``delay`` after each token and ``first`` seconds before the first one."""
    if isinstance(answer, Plain):
        await asyncio.sleep(first + delay * answer.tokens)
        at_once(exchange, answer)
        return
    exchange.begin(SSE, answer.headers, answer.opening)
    await asyncio.sleep(first)
    for token in answer.tokens:
        await exchange.send(token)
        await asyncio.sleep(delay)
    exchange.end(answer.closing)


class Misbehaviour:
    """One call that goes wrong."""

    def __init__(self, exchange: Exchange, call: Call, dialect: Dialect, fault: Fault, settings: Settings) -> None:
        self._exchange = exchange
        self._call = call
        self._dialect = dialect
        self._fault = fault
        self._settings = settings

    async def run(self) -> None:
        """Raises ConnectionError when the client has gone."""
        known = _KNOWN.get(self._fault.fault)
        if known is not None:
            await known(self)
        else:
            at_once(self._exchange, self._dialect.trouble(self._fault.fault, self._call))  # type: ignore[arg-type]

    def _answer(self) -> Answer:
        return self._dialect.answer(self._call, self._settings)

    async def _slow(self) -> None:
        await asyncio.sleep(self._fault.seconds)
        await in_time(self._exchange, self._answer(), self._settings.token_delay)

    async def _slow_first(self) -> None:
        await in_time(self._exchange, self._answer(), self._settings.token_delay, self._fault.seconds)

    async def _trickle(self) -> None:
        await in_time(self._exchange, self._answer(), self._fault.seconds)

    async def _hang(self) -> None:
        await asyncio.sleep(self._fault.seconds)
        self._exchange.reset()

    async def _refuse(self) -> None:
        self._exchange.reset()

    async def _rate_limit(self) -> None:
        answer = self._dialect.trouble("rate_limit", self._call)
        seconds = self._fault.retry_after
        hint = ("retry-after", str(math.ceil(seconds)))
        limits = self._dialect.limits(0, seconds, time.time())
        at_once(self._exchange, replace(answer, headers=(*answer.headers, hint, *limits)))

    async def _no_hint(self) -> None:
        at_once(self._exchange, self._dialect.trouble("rate_limit", self._call))

    async def _exhausted(self) -> None:
        answer, limits = self._answer(), self._dialect.limits(0, self._fault.retry_after, time.time())
        at_once(self._exchange, replace(answer, headers=(*answer.headers, *limits)))

    async def _error(self) -> None:
        at_once(self._exchange, replace(self._dialect.trouble("error", self._call), status=self._fault.status))

    async def _malformed(self) -> None:
        answer = self._answer()
        if isinstance(answer, Plain):
            half = answer.body[: len(answer.body) // 2]
            self._exchange.answer(200, half, answer.content_type, answer.headers)
            return
        await self._until_fault(answer)
        self._exchange.end(b'data: {"id": "chatcmpl-\n\n')

    async def _empty(self) -> None:
        at_once(self._exchange, self._dialect.empty(self._call))

    async def _html(self) -> None:
        self._exchange.answer(200, PAGE, "text/html; charset=utf-8")

    async def _cut(self) -> None:
        await self._half()
        self._exchange.cut()

    async def _stall(self) -> None:
        await self._half()
        await asyncio.sleep(self._fault.seconds)
        self._exchange.reset()

    async def _error_event(self) -> None:
        answer = self._answer()
        if isinstance(answer, Plain):
            await self._error()
            return
        await self._until_fault(answer)
        self._exchange.end(self._dialect.broken())

    async def _unfinished(self) -> None:
        answer = self._answer()
        if isinstance(answer, Plain):
            await self._malformed()
            return
        await self._until_fault(answer)
        self._exchange.end()

    async def _half(self) -> None:
        """The beginning of the answer."""
        answer = self._answer()
        if isinstance(answer, Events):
            await self._until_fault(answer)
        else:
            self._exchange.promise(len(answer.body), answer.content_type, answer.body[: len(answer.body) // 2])

    async def _until_fault(self, answer: Events) -> None:
        self._exchange.begin(SSE, answer.headers, answer.opening)
        for token in answer.tokens[: self._fault.after_tokens]:
            await self._exchange.send(token)
            await asyncio.sleep(self._settings.token_delay)


_KNOWN: Final[dict[str, Callable[[Misbehaviour], Awaitable[None]]]] = {
    "slow": Misbehaviour._slow,
    "slow_first_token": Misbehaviour._slow_first,
    "trickle": Misbehaviour._trickle,
    "hang": Misbehaviour._hang,
    "refuse": Misbehaviour._refuse,
    "rate_limit": Misbehaviour._rate_limit,
    "rate_limit_no_hint": Misbehaviour._no_hint,
    "exhausted": Misbehaviour._exhausted,
    "error": Misbehaviour._error,
    "malformed": Misbehaviour._malformed,
    "empty": Misbehaviour._empty,
    "html": Misbehaviour._html,
    "cut": Misbehaviour._cut,
    "stall": Misbehaviour._stall,
    "error_event": Misbehaviour._error_event,
    "unfinished": Misbehaviour._unfinished,
}
"""Those that are more than one of the provider's own error answers (`Dialect.trouble`)."""
