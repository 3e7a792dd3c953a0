"""A provider that speaks OpenAI's chat completions over HTTP: OpenAI itself, or anything compatible.

Without an SDK: those retry by themselves, which defeats the circuit, and cost several times the call. Every outcome is
sorted here into what the use case can act on. An answer of 200 that holds no completion is a failure like a 5xx.

Source of the protocol: OpenAI API reference, "Create chat completion" and "Error codes".
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import aiohttp

from ai_core.model import MODEL_LIMIT, Completion, RequestRefused, Turn
from ai_core.ports import ModelUnknown, ProviderBusy, ProviderFailed

MAX_CONNECTIONS = 100
CONNECT_LIMIT = 1.0
"""Seconds to open a connection."""
MAX_ANSWER = 1_000_000
"""Bytes of an answer that are read before it counts as useless."""
SIMULATED = "simulated"

_TOO_LONG = "The conversation is too long for the model."
_POLICY = "The AI provider's content policy refused this request."
_REFUSED = {"context_length_exceeded": _TOO_LONG, "content_filter": _POLICY, "content_policy_violation": _POLICY}
_FAILURES = frozenset({401, 403, 408, 409, 425})
"""4xx statuses that say nothing about the request: our key, or the provider's own state."""


class OpenAIProvider:
    """One provider at ``base_url``, its ``/v1`` included. ``limit`` in seconds backs up the policy's hard timeout.

    Make it inside the running loop, close it with the service.
    """

    name = "openai"

    def __init__(self, base_url: str, api_key: str, limit: float, now: Callable[[], float]) -> None:
        self._base_url = base_url.rstrip("/")
        self._now = now
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=limit + 1, sock_connect=CONNECT_LIMIT),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def ping(self) -> None:
        """Raises ProviderFailed unless the provider's model list answers (an endpoint that costs nothing)."""
        async with self._call("GET", "/models") as response:
            if response.status >= 500 or response.status in _FAILURES:
                raise ProviderFailed(f"status {response.status}")

    async def complete(self, model: str, turns: Sequence[Turn]) -> Completion:
        """The model's answer. Raises ProviderFailed, ProviderBusy, ModelUnknown, RequestRefused."""
        request = {"model": model, "messages": [{"role": turn.role, "content": turn.content} for turn in turns]}
        async with self._call("POST", "/chat/completions", request) as response:
            body = await _bounded(response)
            if response.status != 200:
                self._refuse(response.status, response.headers, body, model)
        return self._completion(body, model)

    @asynccontextmanager
    async def _call(self, method: str, path: str, body: object = None) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request. Redirects are not followed: they would carry the key to another host."""
        url = self._base_url + path
        try:
            async with self._session.request(method, url, json=body, allow_redirects=False) as response:
                yield response
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ProviderFailed(type(error).__name__) from error

    def _refuse(self, status: int, headers: Mapping[str, str], body: bytes, model: str) -> NoReturn:
        """Sort an error answer. Its text stays here: it may name accounts, and is not ours to pass on."""
        code = _error_code(body)
        if status == 429:
            raise ProviderBusy(self.name, retry_after(headers, self._now()))
        if code == "model_not_found":
            raise ModelUnknown(model)
        if status < 400 or status == 404 or status >= 500 or status in _FAILURES:
            raise ProviderFailed(f"status {status}")
        raise RequestRefused(_REFUSED.get(code, "The AI provider refused this request."))

    def _completion(self, body: bytes, asked: str) -> Completion:
        """The completion in an answer of 200. Raises ProviderFailed when there is none, RequestRefused by policy."""
        data = _json_object(body)
        choice = _first(data.get("choices"))
        message = choice.get("message")
        text = _text(message if isinstance(message, dict) else {})
        if not text.strip():
            if choice.get("finish_reason") == "content_filter":
                raise RequestRefused(_POLICY)
            raise ProviderFailed("an answer without a completion")
        model, simulated = data.get("model"), data.get("simulated") is True
        named = _clean(model)[:MODEL_LIMIT] if isinstance(model, str) and model else asked
        return Completion(text, SIMULATED if simulated else self.name, named, simulated)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER:
            raise ProviderFailed("an answer without end")
    return bytes(body)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise ProviderFailed("an answer that is no JSON object")
    return data


def _first(choices: object) -> dict[str, Any]:
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    raise ProviderFailed("an answer without choices")


def _text(message: Mapping[str, Any]) -> str:
    """The answer's text; a model's own refusal is an answer too."""
    for member in (message.get("content"), message.get("refusal")):
        if isinstance(member, str) and member.strip():
            return _clean(member)
    return ""


def _clean(text: str) -> str:
    """Without what neither protobuf nor PostgreSQL can carry: NUL, halves of surrogate pairs."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()


def _error_code(body: bytes) -> str:
    try:
        error = _json_object(body).get("error")
    except ProviderFailed:
        return ""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else ""


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, section 10.2.3: a number or a date); None without a usable one."""
    value = headers.get("Retry-After", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        seconds = _until(value, now)
    return seconds if 0 < seconds < float("inf") else None


def _until(date: str, now: float) -> float:
    try:
        moment = parsedate_to_datetime(date)
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
