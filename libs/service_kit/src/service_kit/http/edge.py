"""The edge: everything that happens to every HTTP request, in one plain ASGI layer.

Request id and trace context, a bounded and readable body, the time limit, the headers of degraded answers, metrics, the
access line, and an answer in problem+json whatever goes wrong inside.

One layer, and no task of its own per request: the time limit is a timer that answers 504 by itself and then cancels
the work, so the caller is answered on time even when the work is slow to give up.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import orjson
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resilience.deadline import replace_deadline
from service_kit import context, logs
from service_kit.errors import INTERNAL_MESSAGE, BadRequest, Internal, PayloadTooLarge, RequestTimeout, ServiceError
from service_kit.errors import ValidationFailed as Invalid
from service_kit.provenance import fields
from service_kit.runtime import ServiceRuntime

from .problems import respond

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from service_kit.spans import ServerSpan

log = logs.get_logger("http")

ANSWER_MARGIN = 0.05  # share of the time limit kept for turning a failed call into an answer
MAX_MARGIN = 0.25  # seconds of it at most: of a long limit too much would be kept from the work
STREAM_LIMIT = 60.0  # seconds for the body of an answer that has begun in time
NOTICE_SECONDS = 0.2  # until it is looked whether the client is still there; most answers are through by then
LINGER_SECONDS = 2.0  # for reading on after a refused body, so that the client can read the answer
LINGER_BYTES = 32_000_000
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
Shape = Callable[[ServiceError], Response]
"""How an error looks under some path, where callers expect something else than problem+json."""
_QUIET = frozenset({"/health/live", "/health/ready", "/metrics"})
_JSON = re.compile(rb"application/(?:[\w.+-]+\+)?json\s*(?:;|$)", re.IGNORECASE)
_EVENT_STREAM = b"text/event-stream"
_EVENT_STREAM_UTF8 = b"text/event-stream; charset=utf-8"
UNMATCHED = "unmatched"

SECURITY_HEADERS: list[tuple[bytes, bytes]] = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
# Browsers ignore it where the connection is not encrypted (RFC 6797, section 8.1).
STRICT_TRANSPORT: tuple[bytes, bytes] = (b"strict-transport-security", b"max-age=31536000")
# Of answers that do not set their own: they are data, which no browser has to render and nobody else may keep.
_CSP, _CACHE = b"content-security-policy", b"cache-control"
_DATA_CSP = (_CSP, b"default-src 'none'; frame-ancestors 'none'")
_DATA_CACHE = (_CACHE, b"no-store")
_HTML = b"text/html"


class Edge:
    """The ASGI layer."""

    def __init__(self, app: ASGIApp, runtime: ServiceRuntime, shapes: Mapping[str, Shape] | None = None) -> None:
        self.app = app
        self.shapes = tuple((shapes or {}).items())
        self.runtime = runtime
        self.limit = runtime.settings.request_timeout
        self.slow = runtime.settings.slow_request
        self.max_body = runtime.settings.max_body
        production = runtime.settings.environment == "production"
        self.security = [*SECURITY_HEADERS, STRICT_TRANSPORT] if production else SECURITY_HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            await Exchange(self, scope, receive, send).run()
            return
        if kind == "websocket":
            context.bind(_read(scope["headers"])[0])
        await self.app(scope, receive, send)


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_answer",
        "_body",
        "_edge",
        "_receive",
        "_scope",
        "_send",
        "_span",
        "_state",
        "_task",
        "_timer",
        "_watch",
        "begun",
        "complete",
        "ended",
        "events",
        "given_up",
        "open_ended",
        "started",
        "status",
    )

    def __init__(self, edge: Edge, scope: Scope, receive: Receive, send: Send) -> None:
        self._edge = edge
        self._scope = scope
        self._receive = receive
        self._send = send
        self._body: bytes | None = None
        self._span: ServerSpan | None = None
        self._answer: asyncio.Future[None] | None = None
        self._watch: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self.begun = time.perf_counter()
        self.ended = 0.0
        self.started = self.complete = self.given_up = self.open_ended = self.events = False
        self.status = 0

    async def run(self) -> None:
        """Answer the request. Raises nothing but the server's own cancellation."""
        edge = self._edge
        self._state, framed, length, kind = _read(self._scope["headers"])
        context.bind(self._state)
        self._state.rearm = self.rearm
        self._state.attend = self.attend
        for prefix, shape in edge.shapes:
            if self._scope["path"].startswith(prefix):
                self._state.shape = shape
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self.rearm(edge.limit)
        edge.runtime.in_flight.add(self)
        if (tracer := edge.runtime.tracing.tracer) is not None:
            self._begin_span(tracer)
        try:
            check_target(self._scope)
            receive = self._receive
            if framed:
                self._body = await self._read_body(length)
                check_json(self._body, kind)
                receive = self._replay
            await edge.app(self._scope, receive, self.send)
        except ServiceError as error:
            await self._fail(error)
        except asyncio.CancelledError:
            if not self.given_up:
                raise
        except Exception as error:  # noqa: BLE001 - the last line: whatever it is, the caller gets an answer
            await self._crash(error)
        finally:
            if self._answer is not None:
                await asyncio.wait((self._answer,), timeout=LINGER_SECONDS)
            self._finish()

    # -- the way in

    async def _read_body(self, length: int | None) -> bytes:
        limit = self._edge.max_body
        if length is not None and length > limit:
            raise PayloadTooLarge(f"The body is larger than {limit} bytes.")
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise BadRequest("The connection was closed before the body was complete.")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise PayloadTooLarge(f"The body is larger than {limit} bytes.")
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _replay(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            return await self._receive()
        return {"type": "http.request", "body": body, "more_body": False}

    # -- the time limit

    def rearm(self, seconds: float | None) -> None:
        """Limit the rest of the work, and the calls it makes, to `seconds` from now; None takes the limit away."""
        if self._timer is not None:
            self._timer.cancel()
        self.open_ended = seconds is None
        if seconds is None:
            self._timer = None
            replace_deadline(None)
            return
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expire, seconds)
        replace_deadline(seconds - min(MAX_MARGIN, seconds * ANSWER_MARGIN))

    def _expire(self, seconds: float) -> None:
        self.give_up(RequestTimeout(f"The request was not answered within {seconds:g} s."))

    def give_up(self, error: ServiceError) -> None:
        """Answer with `error` now if no answer has begun, and cancel the work without waiting for it."""
        if self.given_up or self.complete:
            return
        begun = self.started
        self.given_up = True
        if not begun:
            self._answer = asyncio.ensure_future(self._fail(error))
        elif self.open_ended:
            self._answer = asyncio.ensure_future(self._end_stream())
        if self._task is not None:
            self._task.cancel()

    async def _end_stream(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    # -- the client

    def attend(self) -> None:
        """Cancel the work when the client leaves before its answer has begun."""
        if self._watch is None and not self.started:
            self._watch = asyncio.get_running_loop().call_later(NOTICE_SECONDS, self._look)

    def _look(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._until_left())

    async def _until_left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self.started or self.given_up:
            return
        self.given_up = True
        if self._task is not None:
            self._task.cancel()

    def _look_away(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    # -- the way out

    async def send(self, message: Message) -> None:
        """What the application calls; silent once the answer was given without it."""
        if self.given_up:
            return
        if message["type"] == "http.response.start":
            message = self._begin(message)
        elif not message.get("more_body", False):
            self.complete = True
            self.ended = time.perf_counter()
        elif not self.open_ended:
            self._allow_stream()
        await self._send(message)

    def _begin(self, message: Message) -> Message:
        self.started = True
        self._look_away()
        self.status = message["status"]
        headers = list(message["headers"])
        if (b"content-type", _EVENT_STREAM) in headers or (b"content-type", _EVENT_STREAM_UTF8) in headers:
            self.events = True
            self.rearm(None)
        headers += _of_data(headers)
        headers += self._edge.security
        headers.append((b"x-request-id", self._state.request_id.encode("ascii")))
        if self._state.headers:
            headers += self._state.headers
        if self._state.degradations:
            present = {name for name, _ in headers}
            found = ((name.encode(), value.encode("latin-1")) for name, value in fields(self._state.degradations))
            headers += [item for item in found if item[0] not in present]
        return {"type": "http.response.start", "status": self.status, "headers": headers}

    def _allow_stream(self) -> None:
        if self._timer is not None and self._timer.when() < asyncio.get_running_loop().time() + STREAM_LIMIT / 2:
            self.rearm(STREAM_LIMIT)

    async def _fail(self, error: ServiceError) -> None:
        """Answer with a problem, unless an answer has begun: then the connection is closed by the server."""
        if self.started:
            return
        response = respond_in(self._state, error)
        start = self._begin(
            {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        )
        refused = isinstance(error, PayloadTooLarge)
        if refused:
            start["headers"].append((b"connection", b"close"))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": response.body, "more_body": refused})
        if refused:
            await self._linger()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        self.complete = True
        self.ended = time.perf_counter()

    async def _linger(self) -> None:
        """Read on for a moment: closing at once would reset the connection before the client has read the answer."""
        left = LINGER_BYTES
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while left > 0:
                    message = await self._receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
                    left -= len(message.get("body", b""))
        except TimeoutError:
            return

    async def _crash(self, error: Exception) -> None:
        log.error("unhandled error", route=self.route, error=type(error).__name__, exc_info=error)
        await self._fail(Internal(INTERNAL_MESSAGE))

    # -- afterwards

    @property
    def route(self) -> str:
        """The matched route's template; never the raw path, which anybody can make up."""
        route = self._scope.get("route")
        return getattr(route, "path_format", None) or getattr(route, "path", None) or UNMATCHED

    def _begin_span(self, tracer: Tracer) -> None:
        from service_kit.spans import ServerSpan

        self._span = ServerSpan(tracer, self._state, str(self._scope["method"]))

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._look_away()
        runtime, state = self._edge.runtime, self._state
        runtime.in_flight.discard(self)
        state.rearm = state.attend = None  # breaks the cycle between state and exchange: no work for the collector
        seconds = (self.ended or time.perf_counter()) - self.begun
        method = self._scope["method"]
        route, status = self.route, self.status or 499  # 499: the client left before an answer
        runtime.metrics.http(method if method in _METHODS else "_OTHER", route, status, seconds)
        if state.error:
            runtime.metrics.error(state.error, route, transient=status >= 500 or state.error == "CIRCUIT_OPEN")
        if seconds > self._edge.slow and not (self.open_ended or self.events):
            log.warning("slow request", method=method, route=route, status=status, ms=round(seconds * 1000))
        if route not in _QUIET:
            runtime.access_log.write(state, method, route, status, seconds)
        if self._span is not None:
            found = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
            self._span.end(f"{method} {route}", found, failed=status >= 500)


def _of_data(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of data that are not set yet; a page (the console, /docs) has its own or does without."""
    policy, cache = True, True
    for name, value in headers:
        if name == _CSP:
            policy = False
        elif name == _CACHE:
            cache = False
        elif name == b"content-type" and value.startswith(_HTML):
            policy = False
    return [_DATA_CSP] * policy + [_DATA_CACHE] * cache


def respond_in(state: context.RequestContext, error: ServiceError) -> Any:
    """`respond`, also from a timer's callback, where the request's context is not the current one."""
    if context.current() is not state:
        context.bind(state)
    return respond(error)


def _read(headers: list[tuple[bytes, bytes]]) -> tuple[context.RequestContext, bool, int | None, bytes]:
    """The request's context, whether a body follows, its declared length, and its content type."""
    request_id = bearer = traceparent = ""
    framed, length, kind = False, None, b""
    for name, value in headers:
        if name == b"x-request-id":
            request_id = value.decode("latin-1")
        elif name == b"authorization":
            bearer = value[7:].strip().decode("latin-1") if value[:7].lower() == b"bearer " else ""
        elif name == b"traceparent":
            traceparent = context.sane_traceparent(value.decode("latin-1"))
        elif name == b"content-type":
            kind = value
        elif name == b"content-length":
            length = int(value) if value.isdigit() else None
            framed = framed or length != 0
        elif name == b"transfer-encoding":
            framed = True
    request_id = context.sane_request_id(request_id) if request_id else context.new_request_id()
    return context.RequestContext(request_id, bearer, traceparent), framed, length, kind


def check_target(scope: Scope) -> None:
    """Raise BadRequest for a path or query that is no UTF-8 or has NUL in it: nothing behind the edge can store it."""
    path, query = scope.get("raw_path") or b"", scope["query_string"]
    if b"%" in path or b"%" in query:
        for part in (path, query):
            _check_text(unquote_to_bytes(part))


def _check_text(raw: bytes) -> None:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("The address is not valid UTF-8.") from None
    if b"\0" in raw:
        raise BadRequest("The address contains a NUL character.")


def check_json(body: bytes, kind: bytes) -> None:
    """Raise BadRequest for JSON that cannot be read, ValidationFailed for NUL characters inside its texts.

    Stricter than the standard library: no NaN, no lone surrogates, UTF-8 only; none of them could be stored.
    """
    if not body or not _JSON.match(kind):
        return
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadRequest("The body is not valid JSON in UTF-8.") from None
    if b"u0000" in body and _has_nul(value):
        raise Invalid("The request is not valid.", details={"body": "texts must not contain NUL characters"})


def _has_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any("\0" in key or _has_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(_has_nul(item) for item in value)
