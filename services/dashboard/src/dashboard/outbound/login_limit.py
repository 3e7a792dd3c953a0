"""Failed logins are counted in Redis per account: after ten within a quarter of an hour it has to wait.

Off while Redis is away (row D2, dashboard.redis).
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import redis.asyncio as redis

from dashboard.model import TooManyLogins
from resilience import RowPolicy
from service_kit.redis_client import AWAY

MAX_FAILURES = 10
WINDOW_SECONDS = 900

_COUNT = """
local failures = redis.call('INCR', KEYS[1])
if failures == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
return failures
"""


def _key(email: str) -> str:
    return f"login-failures:{hashlib.sha256(email.encode()).hexdigest()}"


class RedisLoginLimit:
    """See the port."""

    def __init__(self, client: redis.Redis, policy: RowPolicy) -> None:
        self._client: Any = client
        self._policy = policy
        self._count = self._client.register_script(_COUNT)

    async def check(self, email: str) -> None:
        """Raises TooManyLogins."""
        key = _key(email)
        with contextlib.suppress(*AWAY):
            failures = await self._policy.call(lambda: self._client.get(key))
            if failures is not None and int(failures) >= MAX_FAILURES:
                seconds = await self._policy.call(lambda: self._client.ttl(key))
                raise TooManyLogins(max(1, seconds))

    async def failed(self, email: str) -> None:
        """Counts one failure."""
        with contextlib.suppress(*AWAY):
            await self._policy.call(lambda: self._count(keys=[_key(email)], args=[WINDOW_SECONDS]))
