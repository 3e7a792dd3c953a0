"""The official clients: what is recorded of them is what they say, and a start does not import them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from typing import Any

import pytest

from ai_core.outbound.providers import sdk
from ai_core.outbound.providers.sdk import RECORDED

CLIENTS: dict[str, Any] = {"openai": sdk.openai_client, "anthropic": sdk.anthropic_client}
HEADERS: dict[str, Any] = {"openai": sdk.openai_headers, "anthropic": sdk.anthropic_headers}
URL = "http://127.0.0.1:1/v1"
STARTED = """
import asyncio, sys
import ai_core.wiring
from ai_core.outbound.openai_embedding import OpenAIEmbeddings
from ai_core.outbound.providers import AnthropicModels, OpenAIModels

async def main():
    made = [kind("openai", URL, "key") for kind in (OpenAIModels, AnthropicModels, OpenAIEmbeddings)]
    print(sorted({"openai", "anthropic"} & sys.modules.keys()))
    for one in made:
        await one.close()

asyncio.run(main())
""".replace("URL", repr(URL))


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("OPENAI_", "ANTHROPIC_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("package", RECORDED)
def test_what_is_recorded_is_what_the_installed_client_says(package: str) -> None:
    assert RECORDED[package].version == metadata.version(package), "a new version: bring RECORDED up to date"
    said = sdk.asked(CLIENTS[package], URL, "the key")
    assert sdk.recorded(package, "the key") == said, "a new version: bring RECORDED up to date"
    assert said["Authorization"] == "Bearer the key"


@pytest.mark.parametrize(
    ("package", "variable", "value", "name", "said"),
    [
        ("openai", "OPENAI_ORG_ID", "org-1", "OpenAI-Organization", "org-1"),
        ("anthropic", "ANTHROPIC_CUSTOM_HEADERS", "X-Team: us", "X-Team", "us"),
    ],
)
def test_variables_of_the_environment_are_the_clients_to_read(
    monkeypatch: pytest.MonkeyPatch, package: str, variable: str, value: str, name: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    headers = HEADERS[package](URL, "the key")
    assert (headers[name], headers["Authorization"]) == (said, "Bearer the key")


@pytest.mark.parametrize("package", RECORDED)
def test_another_version_is_asked_itself(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    old = RECORDED[package]._replace(version="0.1", headers={"User-Agent": "old"})
    monkeypatch.setitem(RECORDED, package, old)
    headers = HEADERS[package](URL, "")
    assert headers["User-Agent"].startswith("Async")
    assert headers["Authorization"] == f"Bearer {sdk.NO_KEY}"


def test_a_start_imports_none_of_them() -> None:
    found = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True, timeout=60, check=False)
    assert found.stdout == "[]\n", found.stderr
