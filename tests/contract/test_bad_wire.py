"""Bad input below the level of JSON bodies: the wire, headers, signatures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import jwt
import pytest

from tests.harness.client import Account
from tests.harness.platform import Platform

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.stack]

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    ],
    ids=["binary", "no address", "version", "length"],
)
async def test_what_is_no_http(platform: Platform, sent: bytes) -> None:
    port = platform.stack.plan.public("dashboard", "http")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(8):
            writer.write(sent)
            answer = await reader.readline()
    except ConnectionError:
        answer = b""
    finally:
        writer.close()
    assert answer == b"" or b" 4" in answer or b" 505 " in answer
    assert (await platform.call("GET", "/health/ready")).status == 200


async def test_ten_megabytes_of_which_nobody_warned(platform: Platform) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100_000

    answer = await platform.call("POST", "/api/v1/users", data=chunks(), headers=JSON)
    assert (answer.status, answer.body["error"]) == (413, "VALIDATION_ERROR")


async def test_a_header_out_of_bounds(platform: Platform, accounts: list[Account]) -> None:
    for header in ("Idempotency-Key", "Prefer"):
        answer = await platform.rename(accounts[3], "name", **{header: "x" * 1000})
        assert (answer.status, answer.body["error"]) == (422, "VALIDATION_ERROR")


def nearly_right(platform: Platform, account: Account) -> Mapping[str, str]:
    """The account's own token with one thing wrong."""
    secret = platform.stack.state.secret("jwt")
    claims: dict[str, Any] = jwt.decode(account.token, options={"verify_signature": False})
    head, body, signature = account.token.split(".")
    without = {name: value for name, value in claims.items() if name != "exp"}
    return {
        "no signature": f"{head}.{body}.",
        "changed signature": f"{head}.{body}.{signature[::-1]}",
        "another algorithm": jwt.encode(claims, secret, algorithm="HS512"),
        "another issuer": jwt.encode({**claims, "iss": "somebody"}, secret, algorithm="HS256"),
        "for ever": jwt.encode(without, secret, algorithm="HS256"),
        "made an administrator": jwt.encode({**claims, "role": "admin"}, "y" * 64, algorithm="HS256"),
    }


async def test_tokens_that_are_nearly_right(platform: Platform, accounts: list[Account]) -> None:
    account = accounts[3]
    assert (await platform.profile(account)).status == 200
    for what, token in nearly_right(platform, account).items():
        for path in (f"/api/v1/users/{account.id}", "/api/v1/rooms", "/api/v1/agents", "/api/v1/users"):
            answer = await platform.call("GET", path, headers={"authorization": f"Bearer {token}"})
            assert (answer.status, answer.body["error"]) == (401, "UNAUTHORIZED"), (what, path)
