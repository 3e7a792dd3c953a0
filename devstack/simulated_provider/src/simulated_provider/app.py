"""Which request is whose: three providers by their paths, the admin API, health."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, Final
from urllib.parse import unquote

import orjson

from simulated_provider.anthropic import Anthropic
from simulated_provider.behave import Misbehaviour, at_once, in_time
from simulated_provider.elevenlabs import ElevenLabs
from simulated_provider.faults import Calls, Faults, parse_fault, parse_settings
from simulated_provider.openai import OpenAI
from simulated_provider.server import Exchange
from simulated_provider.values import Call, Dialect, Refused, Settings

DIALECTS: Final[Mapping[str, Dialect]] = {"openai": OpenAI(), "anthropic": Anthropic(), "elevenlabs": ElevenLabs()}
KINDS: Final = {
    "openai": ("chat", "stream", "embeddings", "speech", "models"),
    "anthropic": ("chat", "stream", "models"),
    "elevenlabs": ("speech", "models"),
}
_HEALTH: Final = b'{"status":"healthy","service":"simulated-provider","simulated":true}'


def targets() -> list[str]:
    """Everything for which a fault can be ordered."""
    return [
        name
        for provider, dialect in DIALECTS.items()
        for name in (provider, *(f"{provider}:{one}" for one in (*dialect.models, *KINDS[provider])))
    ]


class App:
    """Answers each request of the server."""

    def __init__(self, settings: Settings = Settings()) -> None:  # noqa: B008 - it cannot be changed
        self.settings = settings
        self.calls = Calls()
        self.faults = Faults(targets())

    def __call__(self, exchange: Exchange) -> Coroutine[Any, Any, None] | None:
        """See `server.Handler`."""
        target = exchange.target
        if target.startswith("/v1/"):
            return self._provider(exchange, DIALECTS["openai"], target.partition("?")[0])
        for name in ("anthropic", "elevenlabs"):
            if target.startswith(f"/{name}/"):
                path = target.removeprefix(f"/{name}")
                return self._provider(
                    exchange, DIALECTS[name], path if name == "elevenlabs" else path.partition("?")[0]
                )
        self._own(exchange, unquote(target.partition("?")[0]))
        return None

    def _provider(self, exchange: Exchange, dialect: Dialect, path: str) -> Coroutine[Any, Any, None] | None:
        try:
            call = dialect.parse(exchange.method, path, exchange.body, exchange.headers)
        except Refused as refused:
            at_once(exchange, refused.answer)
            return None
        fault = self.faults.pick(call)
        self.calls.count(call, faulted=fault is not None)
        if fault is not None:
            return self._watched(call, Misbehaviour(exchange, call, dialect, fault, self.settings).run())
        work = self._well(exchange, dialect, call)
        return None if work is None else self._watched(call, work)

    async def _watched(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            self.calls.left(call)
            raise

    def _well(self, exchange: Exchange, dialect: Dialect, call: Call) -> Coroutine[Any, Any, None] | None:
        answer = dialect.answer(call, self.settings)
        if self.settings.token_delay:
            return in_time(exchange, answer, self.settings.token_delay)
        at_once(exchange, answer)
        return None

    # --- our own

    def _own(self, exchange: Exchange, path: str) -> None:
        if path == "/health" and exchange.method == "GET":
            exchange.answer(200, _HEALTH)
            return
        if not path.startswith("/admin/"):
            _tell(exchange, 404, {"error": {"message": "Nothing is here.", "type": "not_found", "code": None}})
            return
        try:
            self._admin(exchange, path.removeprefix("/admin/"))
        except ValueError as error:
            _tell(exchange, 422, {"error": {"message": str(error), "type": "validation", "code": None}})
        except KeyError as error:
            message = f"no target {error.args[0]!r}; known: {', '.join(sorted(self.faults.targets))}"
            _tell(exchange, 404, {"error": {"message": message, "type": "not_found", "code": None}})

    def _admin(self, exchange: Exchange, path: str) -> None:
        """Raises ValueError for a body, KeyError for a target that is wrong."""
        what, _, target = path.partition("/")
        match exchange.method, what, bool(target):
            case "GET", "calls", False:
                _tell(exchange, 200, self.calls.shown())
            case "DELETE", "calls", False:
                self.calls.clear()
                _tell(exchange, 200, {})
            case "GET", "faults", False:
                _tell(exchange, 200, self.faults.shown())
            case "PUT", "faults", True:
                self.faults.order(target, parse_fault(orjson.loads(exchange.body)))
                _tell(exchange, 200, self.faults.shown())
            case "DELETE", "faults", _:
                self.faults.clear(target)
                _tell(exchange, 200, self.faults.shown())
            case "GET", "targets", False:
                _tell(exchange, 200, sorted(self.faults.targets))
            case "GET" | "PUT", "settings", False:
                self._change(exchange)
            case _:
                _tell(exchange, 404, {"error": {"message": "Nothing is here.", "type": "not_found", "code": None}})

    def _change(self, exchange: Exchange) -> None:
        if exchange.method == "PUT":
            self.settings = parse_settings(orjson.loads(exchange.body), self.settings)
        _tell(exchange, 200, self.settings)


def _tell(exchange: Exchange, status: int, value: object) -> None:
    exchange.answer(status, orjson.dumps(value))
