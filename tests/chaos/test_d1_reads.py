"""Row D1, dashboard.postgres: what no copy has is an honest error. (How fast copies are: benchmarks/read.py.)"""

from __future__ import annotations

import pytest

from tests.harness.platform import Platform, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("D1"), pytest.mark.stack]


async def test_what_nobody_has_read_is_an_honest_error(platform: Platform) -> None:
    """Registered, then lost from every copy: 503 while it is tried, 429 once the circuit is open."""
    await platform.stack.kill("postgres")
    missing = {"email": "nobody@example.org", "password": "whatever it was"}
    seen = set()

    async def opened() -> bool:
        answer = await platform.call("POST", "/api/v1/auth/login", json=missing)
        seen.add(answer.status)
        assert answer.status in (503, 429), answer
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.body["error"] in ("DATABASE_ERROR", "CIRCUIT_OPEN")
        return answer.status == 429

    await eventually(opened, "the circuit is open")
    assert seen == {503, 429}
