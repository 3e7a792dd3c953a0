"""The Dashboard keeps its own OpenAPI document, whatever is sent: tested by Schemathesis, operation by operation."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.harness.platform import Platform

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]
HERE = Path(__file__).parent
# Every boundary of every field ("coverage") takes minutes of both processors: on request, EVERY_BOUNDARY=1.
PHASES = "examples,coverage,fuzzing" if os.environ.get("EVERY_BOUNDARY") else "examples,fuzzing"
# Left out: ending the session that the run itself uses, and the switches that would break the platform for the others.
LEFT_OUT = "/auth/logout|/admin/(circuit-breaker|mode|queue/dead-letters/)"


async def schemathesis(url: str, token: str, *selection: str) -> tuple[int, str]:
    """Exit status and output of a run against a Dashboard."""
    program, config = Path(sys.executable).parent / "st", HERE / "schemathesis.toml"
    options = (
        "--url",
        url,
        "--header",
        f"Authorization: Bearer {token}",
        "--request-timeout",
        "10",
        "--phases",
        PHASES,
    )
    process = await asyncio.create_subprocess_exec(
        *(program, "--config-file", config, "run", f"{url}/openapi.json", *options, "--no-color"),
        *selection,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 200)
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode or 0, output.decode(errors="replace")


async def test_as_a_user(platform: Platform) -> None:
    account = await platform.register()
    url = platform.stack.url("dashboard")
    status, output = await schemathesis(url, account.token, "--exclude-path-regex", LEFT_OUT)
    assert status == 0, output


async def test_as_an_operator(platform: Platform) -> None:
    url = platform.stack.url("dashboard")
    choice = (
        "--include-path-regex",
        "^/admin/queue|^/api/v1/(users|diagnostics/.*)$|^/health",
        "--include-method",
        "GET",
    )
    status, output = await schemathesis(url, platform.stack.admin_token, *choice)
    assert status == 0, output
