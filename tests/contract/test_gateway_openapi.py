"""AI Core keeps its own OpenAPI document where the gateway is concerned, and so it does in what it refuses."""

from __future__ import annotations

import pytest

from service_kit.tokens import TokenIssuer
from tests.contract.test_openapi import schemathesis
from tests.harness.platform import Platform

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]


async def test_the_gateway(platform: Platform) -> None:
    token = TokenIssuer(platform.stack.state.secret("jwt")).issue("contract", "session")
    url = platform.stack.url("ai-core")
    status, output = await schemathesis(url, token, "--include-path-regex", "^/v1/")
    assert status == 0, output


async def test_chat_with_an_agent(platform: Platform) -> None:
    token = TokenIssuer(platform.stack.state.secret("jwt")).issue("contract", "session")
    url = platform.stack.url("ai-core")
    status, output = await schemathesis(url, token, "--include-path-regex", "^/api/v1/agents/.*/chat$")
    assert status == 0, output
