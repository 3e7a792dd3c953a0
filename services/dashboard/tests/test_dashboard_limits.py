"""Request limits (row D2, dashboard.redis): leases of a shared bucket on a real Valkey, and whose request it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic_core import PydanticCustomError
from redis.asyncio import Redis
from starlette.requests import Request

from dashboard.inbound.http.limits import Addresses, RequestLimits
from dashboard.outbound import limits
from dashboard.outbound.limits import LeasedLimit, Outage
from dashboard.settings import Rate, parse_rate
from resilience.clock import SYSTEM_CLOCK, Clock
from resilience.integrations.redis_limiter import RedisRateLimiter
from resilience.testing import FakeClock
from service_kit import context
from service_kit.errors import RateLimited
from service_kit.redis_client import create_client

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOUR = 3600.0
NOWHERE = "redis://127.0.0.1:1/0"


class Counting:
    """The policy of Redis, as far as a limiter knows it."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, action: Callable[[], Awaitable[Any]]) -> Any:
        self.calls += 1
        return await action()


class Instance:
    """One instance's limit, on its own lease clock: so many requests an hour, so that nothing flows back meanwhile."""

    def __init__(self, client: Redis, rate: float, per: float, burst: int, clock: Clock | None = None) -> None:
        self.asked = Counting()
        self.time = FakeClock()
        self.clock = clock or self.time
        limiter = RedisRateLimiter(client, "user", rate, per, burst, call=self.asked, timeout=1.0)
        self.outage = Outage(self.clock, lambda: False)
        self.limit = LeasedLimit(limiter, self.clock, self.outage)

    async def take(self, key: str = "somebody") -> Any:
        decision = self.limit.take_now(key)
        return await self.limit.take(key) if decision is None else decision


async def test_two_instances_let_through_what_the_bucket_gives_and_no_more(redis_client: Redis) -> None:
    one, other = (Instance(redis_client, 1, HOUR, 500) for _ in range(2))
    allowed = [bool(await instance.take()) for _ in range(400) for instance in (one, other)]
    assert allowed.count(True) == 500
    assert one.asked.calls + other.asked.calls < 60, "most requests are decided here"


async def test_many_at_once_are_all_decided_and_none_gets_through_twice(redis_client: Redis) -> None:
    one, other = (Instance(redis_client, 1, HOUR, 100) for _ in range(2))
    decisions = await asyncio.gather(*(instance.take() for _ in range(100) for instance in (one, other)))
    assert sum(map(bool, decisions)) == 100
    assert one.asked.calls + other.asked.calls < 60


async def test_busy_callers_cost_redis_few_questions(redis_client: Redis) -> None:
    instance = Instance(redis_client, 1, HOUR, 4000)
    for _ in range(2000):
        assert await instance.take()
    assert instance.asked.calls < 15


async def test_who_comes_seldom_pays_little_more_than_a_token_each_time(redis_client: Redis) -> None:
    instance = Instance(redis_client, 1, HOUR, 400)
    for _ in range(50):
        decision = await instance.take()
        instance.time.move(limits.LEASE_SECONDS + 0.1)
    assert decision.free >= 400 - 50 * 4 - 1


async def test_a_small_bucket_is_exact(redis_client: Redis) -> None:
    instance = Instance(redis_client, 1, HOUR, 5)
    found = []
    for _ in range(5):
        found.append((await instance.take()).remaining)
        instance.time.move(limits.LEASE_SECONDS + 0.1)
    assert found == [4, 3, 2, 1, 0]
    assert not await instance.take()


async def test_a_lease_ends(redis_client: Redis) -> None:
    instance = Instance(redis_client, 1, HOUR, 1000)
    for _ in range(200):
        await instance.take()
    instance.time.move(limits.LEASE_SECONDS + 0.1)
    before = instance.asked.calls
    assert await instance.take()
    assert instance.asked.calls == before + 1


async def test_a_refusal_is_remembered_and_its_time_is_true(redis_client: Redis) -> None:
    instance = Instance(redis_client, 10, 1.0, 2, clock=SYSTEM_CLOCK)
    while decision := await instance.take():
        pass
    before = instance.asked.calls
    assert not any([await instance.take() for _ in range(5)])
    assert instance.asked.calls == before
    assert 0.0 < decision.retry_after <= 0.1
    await asyncio.sleep(decision.retry_after + 0.02)
    assert await instance.take()


async def test_keys_do_not_share_a_bucket_and_few_are_remembered(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_KEYS", 10)
    instance = Instance(redis_client, 1, HOUR, 1)
    for number in range(30):
        assert await instance.take(f"user {number}")
        assert not await instance.take(f"user {number}")
    assert len(instance.limit._leases) == 10
    assert not await instance.take("user 0"), "Redis has not forgotten"


async def test_without_redis_there_is_no_limit_and_one_question_a_second() -> None:
    client = create_client(NOWHERE)
    instance = Instance(client, 1, HOUR, 1)
    assert [await instance.take() for _ in range(10)] == [None] * 10
    assert instance.asked.calls == 1
    assert await instance.take("somebody else") is None
    assert instance.asked.calls == 1
    instance.time.move(limits.OFF_SECONDS + 0.1)
    await instance.take()
    assert instance.asked.calls == 2
    await client.aclose()


async def test_an_open_circuit_is_not_even_asked(redis_client: Redis) -> None:
    instance = Instance(redis_client, 1, HOUR, 1)
    instance.outage._away = lambda: True
    assert await instance.take() is None
    assert instance.asked.calls == 0


# -- at the door


def request(peer: str = "192.0.2.1", *forwarded: str) -> Request:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    return Request({"type": "http", "client": (peer, 1), "headers": headers})


def told() -> dict[str, str]:
    state = context.current()
    assert state
    return {name.decode(): value.decode() for name, value in state.headers or ()}


async def test_a_client_is_told_of_both_limits_and_refused_with_the_time_to_wait(redis_client: Redis) -> None:
    address = LeasedLimit(RedisRateLimiter(redis_client, "address", 1, HOUR, 5), SYSTEM_CLOCK, _never())
    user = LeasedLimit(RedisRateLimiter(redis_client, "user", 1, HOUR, 2), SYSTEM_CLOCK, _never())
    doors = RequestLimits(user, address)
    for left in (1, 0):
        context.bind(context.RequestContext("1"))
        await doors.request(request(), "alice")
        assert told()["ratelimit-policy"] == '"address";q=5;w=18000, "user";q=2;w=7200'
        assert f'"user";r={left};t=' in told()["ratelimit"]
    context.bind(context.RequestContext("2"))
    with pytest.raises(RateLimited) as refused:
        await doors.request(request(), "alice")
    assert refused.value.status == 429
    assert 3500 < (refused.value.retry_after or 0) <= 3600
    assert '"user";r=0;t=3600' in told()["ratelimit"]
    for other in ("bob", "dave"):
        await doors.request(request(), other)
    with pytest.raises(RateLimited):
        await doors.request(request(), "carol")  # the address has had its five


async def test_nothing_is_said_of_a_limit_that_is_off() -> None:
    client = create_client(NOWHERE)
    limit = LeasedLimit(RedisRateLimiter(client, "login", 1, HOUR, 1), SYSTEM_CLOCK, _never())
    context.bind(context.RequestContext("1"))
    doors = RequestLimits(login=limit)
    for _ in range(3):
        await doors.login(request())
        await doors.request(request(), "alice")
    assert told() == {}
    await client.aclose()


def _never() -> Outage:
    return Outage(SYSTEM_CLOCK, lambda: False)


PROXIES = ("10.0.0.0/8", "fd00::/8")


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ((), "192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        (PROXIES, "192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        (PROXIES, "10.1.1.1", ["198.51.100.7"], "198.51.100.7"),
        (PROXIES, "10.1.1.1", ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
        (PROXIES, "10.1.1.1", ["203.0.113.9, 198.51.100.7, 10.2.2.2"], "198.51.100.7"),
        (PROXIES, "10.1.1.1", ["203.0.113.9", "198.51.100.7:4711"], "198.51.100.7"),
        (PROXIES, "10.1.1.1", ["10.3.3.3"], "10.3.3.3"),
        (PROXIES, "10.1.1.1", [], "10.1.1.1"),
        (PROXIES, "10.1.1.1", ["203.0.113.9, nonsense, 10.2.2.2"], "10.2.2.2"),
        (PROXIES, "fd00::1", ["[2001:db8:1:2:3::4]:80"], "2001:db8:1:2::/64"),
        ((), "2001:db8:1:2:ffff::9", [], "2001:db8:1:2::/64"),
        ((), "::ffff:192.0.2.1", [], "192.0.2.1"),
        ((), "not an address", [], "unknown"),
    ],
)
async def test_whose_request_it_is(trusted: tuple[str, ...], peer: str, forwarded: list[str], client: str) -> None:
    assert Addresses(trusted).of(request(peer, *forwarded)) == client


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("200/s:400", Rate(200, 1.0, 400)),
        ("5/m:300", Rate(5, 60.0, 300)),
        (" 10/H:1 ", Rate(10, 3600.0, 1)),
        ("off", None),
    ],
)
async def test_a_rate_in_the_settings(text: str, rate: Rate | None) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "200", "200/s", "0/s:1", "1/s:0", "1/d:5", "-1/s:5", "2000000/s:5", "on"])
async def test_a_rate_that_is_none(text: str) -> None:
    with pytest.raises(PydanticCustomError):
        parse_rate(text)
