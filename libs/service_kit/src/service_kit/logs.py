"""Structured logs: one JSON object a line (or readable lines on a terminal), with request and trace id.

Secrets are removed by the name of their field and, in texts, where they look like credentials. Lines of the access
log skip the processor chain and are written in batches: at full load they would otherwise cost more than the
request.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import re
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import IO, Any, Literal

import orjson
import structlog

from . import context

_SECRET_NAME = re.compile(r"(secret|token|password|passwd|authorization|cookie|api_?key|credential|dsn)", re.IGNORECASE)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_BEARER = re.compile(r"(?i)\b(bearer)\s+[\w.~+/=-]+")
_JWT = re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*")
REDACTED = "[redacted]"

FLUSH_EVERY = 0.1  # seconds an access line may wait
FLUSH_BYTES = 32_768

Event = MutableMapping[str, Any]
get_logger = structlog.stdlib.get_logger


def redact_text(text: str) -> str:
    """The text without credentials of URLs, bearer tokens and JSON Web Tokens."""
    text = _URL_CREDENTIALS.sub(REDACTED, text)
    return _JWT.sub(REDACTED, _BEARER.sub(rf"\1 {REDACTED}", text))


def _redact(_logger: object, _method: str, event: Event) -> Event:
    for key, value in event.items():
        if _SECRET_NAME.search(key):
            event[key] = REDACTED
        elif isinstance(value, str):
            event[key] = redact_text(value)
    return event


def _add_request(_logger: object, _method: str, event: Event) -> Event:
    state = context.current()
    if state is not None:
        event.setdefault("request_id", state.request_id)
        if state.trace_id:
            event.setdefault("trace_id", state.trace_id)
    return event


def _to_json(value: object, **_: object) -> str:
    return orjson.dumps(value, default=repr).decode()


def _console() -> structlog.dev.ConsoleRenderer:
    # Plain tracebacks: the pretty ones print local variables, secrets among them, and take seconds.
    return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)


if not structlog.is_configured():  # until `configure`: during wiring, and in tests
    structlog.configure(processors=[structlog.processors.add_log_level, _add_request, _redact, _console()])


def configure(
    service: str, *, level: str = "info", form: Literal["json", "console"] = "json", stream: IO[str] | None = None
) -> None:
    """Set up structlog and the standard library's logging to write to `stream` (stdout when None)."""

    def add_service(_logger: object, _method: str, event: Event) -> Event:
        event["service"] = service
        return event

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
        _add_request,
    ]
    last = structlog.processors.JSONRenderer(serializer=_to_json) if form == "json" else _console()
    renderer: list[Any] = [structlog.processors.format_exc_info, _redact, last]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    _configure_standard(shared, renderer, level, stream or sys.stdout)


def _configure_standard(shared: list[Any], renderer: list[Any], level: str, stream: IO[str]) -> None:
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("uvicorn.error", "uvicorn.asgi", "asyncio", "grpc", "opentelemetry", "aiohttp"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


class AccessLog:
    """One line for each request, collected and written at most `FLUSH_EVERY` seconds later.

    `mode` is "all", "errors" (status 500 and above, gRPC statuses of the same kind) or "off".
    """

    def __init__(self, service: str, mode: str = "all", stream: IO[bytes] | None = None) -> None:
        self._service = service
        self._all = mode == "all"
        self._off = mode == "off"
        self._stream = stream
        self._lines: list[bytes] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        atexit.register(self.flush)

    def write(self, state: context.RequestContext, kind: str, route: str, status: int | str, seconds: float) -> None:
        """Note an answered request; `route` is the template, never the raw path."""
        failed = status >= 500 if isinstance(status, int) else status in ("INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED")
        if self._off or not (self._all or failed):
            return
        line: dict[str, Any] = {
            "event": "request",
            "level": "error" if failed else "info",
            "service": self._service,
            "timestamp": datetime.now(UTC),
            "kind": kind,
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 2),
            "request_id": state.request_id,
        }
        if state.trace_id:
            line["trace_id"] = state.trace_id
        if state.degradations:
            line["fallback"] = [one.fallback for one in state.degradations]
        self._add(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z))

    def _add(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)
        if self._size >= FLUSH_BYTES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_EVERY, self.flush)

    def flush(self) -> None:
        """Write what has been collected. A stream that is gone loses the lines, never the request."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines, self._size = self._lines, [], 0
        if not lines:
            return
        try:
            stream = self._stream or sys.stdout.buffer
            stream.write(b"".join(lines))
            stream.flush()
        except (OSError, ValueError):
            return

    def close(self) -> None:
        """Flush for the last time."""
        self.flush()
        atexit.unregister(self.flush)
