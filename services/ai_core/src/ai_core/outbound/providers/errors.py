"""Sorts what a provider answers, other than a completion, into what the chain can act on. One table for all adapters.

A provider's own words stay here: they may name accounts, keys, hosts or quote the prompt.

Sources: OpenAI, "Error codes"; Anthropic, "Errors"; what vLLM, Azure OpenAI and OpenRouter answer in the same places.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from ai_core.model import RequestRefused, TooLong
from ai_core.outbound.providers.limits import retry_after
from ai_core.ports import ModelUnknown, ProviderBusy, ProviderFailed

Sorted = ProviderFailed | ProviderBusy | ModelUnknown | RequestRefused

REFUSED = "The AI provider refused this request."
TOO_LONG = "The conversation is too long for the model."
POLICY = "The AI provider's content policy refused this request."
NO_ROOM = "The limit of tokens left no room for an answer."

_OF_THE_REQUEST = frozenset({400, 411, 413, 414, 415, 422, 431})
"""The statuses that blame the request; every other one is the provider's own, or its opinion of our key."""
_UNKNOWN = frozenset({"model_not_found", "model_decommissioned", "model_not_available", "DeploymentNotFound"})
_BUSY = frozenset({"rate_limit_exceeded", "rate_limit_error", "too_many_requests"})
_OURS = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_error",
        "billing_not_active",
        "account_deactivated",
        "authentication_error",
        "permission_error",
        "invalid_api_key",
    }
)
"""Our account's trouble: nothing the caller did, nothing that time heals."""
_POLICY = frozenset({"content_filter", "content_policy_violation", "moderation_blocked", "invalid_prompt"})
_LONG = frozenset({"context_length_exceeded", "string_above_max_length", "request_too_large"})
_LONG_TEXT = re.compile(
    r"prompt is too long|maximum context length|context (length|window|limit)|too many (input )?tokens", re.IGNORECASE
)
"""Anthropic, vLLM and others have no code for it."""
_POLICY_TEXT = re.compile(r"content (filtering|management) policy", re.IGNORECASE)
"""Neither has Anthropic for this."""
_QUOTA_TEXT = re.compile(r"credit balance is too low", re.IGNORECASE)
"""Anthropic's answer of 400 to an account without credit."""


@dataclass(frozen=True, slots=True)
class Told:
    """What an error object says; None of it may leave this module."""

    codes: frozenset[str] = frozenset()
    text: str = ""
    status: int = 0
    """A status in place of the answer's, as OpenRouter gives it inside answers of 200."""

    @property
    def known(self) -> bool:
        return bool(self.codes or self.text or self.status)


def told(body: bytes | Mapping[str, Any]) -> Told:
    """The error object in an answer or event, of either protocol; nothing told when there is none."""
    error: object = (body if isinstance(body, Mapping) else _object(body)).get("error")
    if isinstance(error, str):
        return Told(text=error)
    if not isinstance(error, Mapping):
        return Told()
    code = error.get("code")
    codes = frozenset(word for word in (code, error.get("type")) if isinstance(word, str))
    status = code if isinstance(code, int) and 400 <= code < 600 else 0
    return Told(codes, str(error.get("message") or ""), status)


def refusal(provider: str, model: str, status: int, headers: Mapping[str, str], body: bytes, now: float) -> Sorted:
    """What an answer other than 200 means. ``now``: unix seconds."""
    return _sort(provider, model, told(body), status, retry_after(headers, now))


def failure_inside(provider: str, model: str, body: Mapping[str, Any]) -> Sorted:
    """What an error object inside an answer of 200, or inside a stream, means."""
    error = told(body)
    return _sort(provider, model, error, error.status or 500, None)


def _sort(provider: str, model: str, error: Told, status: int, wait: float | None) -> Sorted:
    codes = error.codes
    if codes & _OURS or _QUOTA_TEXT.search(error.text):
        return ProviderFailed(f"status {status}: the account")
    if codes & _UNKNOWN or (status == 404 and error.known):
        return ModelUnknown(model)
    if status == 429 or codes & _BUSY:
        return ProviderBusy(provider, wait)
    return _of_the_request(error, status) or ProviderFailed(f"status {status}")


def _of_the_request(error: Told, status: int) -> RequestRefused | None:
    if error.codes & _POLICY:
        return RequestRefused(POLICY)
    if error.codes & _LONG or status == 413:
        return TooLong(TOO_LONG)
    if status not in _OF_THE_REQUEST:
        return None
    if _LONG_TEXT.search(error.text):
        return TooLong(TOO_LONG)
    return RequestRefused(POLICY if _POLICY_TEXT.search(error.text) else REFUSED)


def empty(reason: str) -> ProviderFailed | RequestRefused:
    """What a complete answer without any content means, by its finish reason.

    A limit of tokens that is used up before the first word (by reasoning) is the request's, so that requests alone
    cannot open a provider's circuit.
    """
    if reason == "content_filter":
        return RequestRefused(POLICY)
    return RequestRefused(NO_ROOM) if reason == "length" else ProviderFailed("an answer without content")


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        data = orjson.loads(body)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
