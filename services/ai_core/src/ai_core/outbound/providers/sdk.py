"""What the official clients say about a call, without importing them where that is known; why: docs/adr/0012.

A client is asked for its headers: those that authenticate, and that name the version of the API. Importing it for that
costs 0.2 s (``openai``) or 0.6 s (``anthropic``) of every start, and 13 or 40 MB. So what it said once is recorded, by
its version; any other version, and one that may read variables of the environment, is asked itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Final, NamedTuple, Protocol

NO_KEY: Final = "none"
"""The clients insist on a key; servers without keys do not look at it."""
_STATISTICS: Final = "x-stainless-"
"""Begins the headers in which a client tells its maker where it runs. It does not make these calls."""


class SdkClient(Protocol):
    """What both official clients show of their configuration."""

    @property
    def default_headers(self) -> Mapping[str, object]: ...

    @property
    def auth_headers(self) -> Mapping[str, str]: ...


class Recorded(NamedTuple):
    """What ``version`` of a client says in an environment without variables of its own; ``{}`` stands for the key.

    ``ours``: variables that begin as its own do and are given to it, or are none of its business.
    """

    version: str
    headers: Mapping[str, str]
    ours: frozenset[str]


_JSON: Final = {"Accept": "application/json", "Content-Type": "application/json"}
RECORDED: Final = {
    "openai": Recorded(
        "3.57.0",
        {**_JSON, "User-Agent": "AsyncOpenAI/Python 3.57.0", "Authorization": "Bearer {}"},
        frozenset({"OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_SPEECH_MODEL", "OPENAI_SPEECH_VOICE"}),
    ),
    "anthropic": Recorded(
        "2.14.0",
        {
            **_JSON,
            "User-Agent": "AsyncAnthropic/Python 2.14.0",
            "Authorization": "Bearer {}",
            "anthropic-version": "2026-10-21",
        },
        frozenset({"ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"}),
    ),
}
"""A test compares it with the clients that are installed."""


def openai_headers(base_url: str, key: str) -> dict[str, str]:
    """Of every request to OpenAI or a provider like it, authentication included."""
    return recorded("openai", key) or asked(openai_client, base_url, key)


def anthropic_headers(base_url: str, key: str) -> dict[str, str]:
    """Of every request to Anthropic, authentication included."""
    return recorded("anthropic", key) or asked(anthropic_client, base_url, key)


def recorded(package: str, key: str) -> dict[str, str] | None:
    """What is known to be said by the client that is installed, in this environment; None when that is not known."""
    known = RECORDED[package]
    prefix = f"{package.upper()}_"
    variables = any(name.startswith(prefix) and name not in known.ours for name in os.environ)
    if variables or known.version != metadata.version(package):
        return None
    return {name: value.format(key or NO_KEY) for name, value in known.headers.items()}


def asked(make: Callable[[str, str], SdkClient], base_url: str, key: str) -> dict[str, str]:
    """What the client says, without those that it leaves out, and without its statistics."""
    client = make(base_url, key or NO_KEY)
    both = {**client.default_headers, **client.auth_headers}
    return {
        name: value
        for name, value in both.items()
        if isinstance(value, str) and not name.lower().startswith(_STATISTICS)
    }


def openai_client(base_url: str, key: str) -> SdkClient:
    """OpenAI's; nothing is sent through it."""
    from openai import AsyncOpenAI

    return AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0)


def anthropic_client(base_url: str, key: str) -> SdkClient:
    """Anthropic's; nothing is sent through it."""
    from anthropic import AsyncAnthropic

    return AsyncAnthropic(api_key=key, base_url=base_url, max_retries=0, open_telemetry=False)
