"""The rate limit on Redis, against a real Valkey that is frozen, killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from devstack import wheels
from resilience import FakeClock, Policy, deadline_scope
from resilience.breaker import CircuitBreaker
from resilience.errors import CallTimeout, RateLimited
from resilience.events import Event, Events
from resilience.integrations.redis_limiter import (
    RateLimiterUnavailable,
    RateLimitStoreBack,
    RateLimitStoreLost,
    RedisRateLimiter,
)
from resilience.limiter import KeyedRateLimiter, RateLimiter, RateLimitRejected

LIMIT = 0.1  # seconds that asking may take


class Server:
    """A Valkey of its own that can be broken."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._folder = folder
        self.start()

    def start(self) -> None:
        settings = {"port": self.port, "bind": "127.0.0.1", "dir": self._folder, "save": "", "appendonly": "no"}
        arguments = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen(
            [str(wheels.valkey_server()), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 10
        while not self._answers():
            assert time.monotonic() < end, "Valkey does not start"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def mend(self) -> None:
        """Whatever a failed test has left."""
        self.thaw()
        if self.process.poll() is not None:
            self.start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("valkey"))
    yield server
    server.kill()


patient = partial(RedisRateLimiter, timeout=5.0)
"""For tests in which Redis is there, however busy the machine is."""


def client_of(server: Server) -> Redis:
    return Redis(port=server.port, retry=Retry(NoBackoff(), 0))


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Redis]:
    """An empty Valkey."""
    server.mend()
    client = client_of(server)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def events(told: list[Event]) -> Events:
    events = Events()
    events.subscribe(told.append)
    return events


async def taken(limiter: RedisRateLimiter, tries: int = 20, **what: Any) -> int:
    return sum([(await limiter.try_acquire(**what)).allowed for _ in range(tries)])


# -- one budget for all


async def test_two_instances_share_one_budget(server: Server, client: Redis) -> None:
    other = client_of(server)
    one, two = (patient(each, "api", 1, 3600, burst=10) for each in (client, other))
    try:
        assert sum(await asyncio.gather(*(taken(limiter) for limiter in (one, two, one, two)))) == 10
    finally:
        await other.aclose()


async def test_a_decision_says_what_is_left(client: Redis) -> None:
    limiter = patient(client, "api", 1, 100, burst=4)
    first = await limiter.try_acquire()
    assert (first.allowed, first.retry_after, first.remaining, first.degraded) == (True, 0.0, 3, False)
    assert first.reset_after == pytest.approx(100)
    assert (await limiter.try_acquire(2)).remaining == 1
    refused = await limiter.try_acquire(2)
    assert not refused
    assert refused.retry_after == pytest.approx(100, abs=1)
    assert refused.reset_after == pytest.approx(300, abs=1)
    assert (await limiter.try_acquire(1.0)).remaining == 0


async def test_more_than_the_burst_is_never_allowed_and_nobody_is_asked(client: Redis) -> None:
    limiter = patient(client, "api", 1, 100, burst=4, max_wait=1_000)
    decision = await limiter.try_acquire(5)
    assert (decision.allowed, decision.retry_after) == (False, None)
    with pytest.raises(RateLimited, match="never"):
        await limiter.wait(4.5)
    with pytest.raises(ValueError, match="cost"):
        await limiter.try_acquire(0)
    assert await client.keys() == []


async def test_each_key_has_a_limit_of_its_own_and_expires_by_itself(client: Redis) -> None:
    limiter = patient(client, "login", 2, 60, burst=3)
    assert [await taken(limiter, key=key) for key in ("a", "b")] == [3, 3]
    assert sorted(await client.keys()) == [b"ratelimit:login:a", b"ratelimit:login:b"]
    assert 89_000 < await client.pttl("ratelimit:login:a") <= 90_000
    quick = patient(client, "quick", 1000, burst=1)
    await quick.try_acquire()
    await asyncio.sleep(0.02)
    assert await client.exists("ratelimit:quick:") == 0


async def test_it_comes_back_at_its_rate(client: Redis) -> None:
    limiter = patient(client, "api", 100, burst=2)
    began = time.monotonic()
    count = 0
    while time.monotonic() - began < 0.2:
        count += (await limiter.try_acquire()).allowed
    assert 12 <= count <= 3 + (time.monotonic() - began) * 100


async def test_a_server_clock_set_back_costs_one_burst_at_most(client: Redis) -> None:
    limiter = patient(client, "api", 1, 10, burst=3)
    far = int(time.time() * 1_000_000) + 3_600_000_000
    await client.set("ratelimit:api:", far)
    decision = await limiter.try_acquire()
    assert not decision
    assert decision.retry_after == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize("found", ["1000000", "not a number"])
async def test_a_burst_is_a_burst_whatever_is_found_at_the_key(client: Redis, found: str) -> None:
    limiter = patient(client, "api", 1, 3600, burst=3)
    await client.set("ratelimit:api:", found)
    assert await taken(limiter) == 3
    assert not limiter.degraded


@pytest.mark.parametrize(("rate", "microseconds"), [(3, 333_334), (1e6 / 13, 13), (1e6, 1)])
async def test_an_interval_is_rounded_up_to_microseconds(client: Redis, rate: float, microseconds: int) -> None:
    decision = await patient(client, "api", rate).try_acquire()
    assert decision.reset_after == microseconds / 1e6


async def test_the_script_is_loaded_again_when_the_server_has_lost_it(client: Redis) -> None:
    limiter = patient(client, "api", 1, 10)
    assert await limiter.try_acquire()
    await client.script_flush()
    decision = await limiter.try_acquire()
    assert (decision.allowed, decision.degraded) == (False, False)


# -- waiting


async def test_turns_are_reserved_in_order(client: Redis, told: list[Event], events: Events) -> None:
    clock = FakeClock()
    limiter = RedisRateLimiter(client, "api", 1, burst=1, max_wait=3.5, timeout=5, clock=clock, events=events)
    assert await limiter.wait() == 0.0
    with deadline_scope(0.5, clock=clock), pytest.raises(RateLimited):
        await limiter.wait()
    told.clear()
    waiting = []
    for _ in range(3):
        waiting.append(asyncio.create_task(limiter.wait()))
        await asyncio.sleep(0.02)
    with pytest.raises(RateLimited) as caught:
        await limiter.wait()
    assert caught.value.retry_after == pytest.approx(4, abs=0.5)
    assert told == [RateLimitRejected("api", None, caught.value.retry_after)]
    assert not any(task.done() for task in waiting)
    await clock.advance(4)
    assert [task.result() for task in waiting] == pytest.approx([1, 2, 3], abs=0.5)
    assert clock.pending == 0


async def test_every_form_takes_one(client: Redis) -> None:
    limiter = patient(client, "api", 1, 3600, burst=5)

    async def answer(value: int) -> int:
        return value

    assert await limiter.call(answer, 1) == 1
    assert await limiter.call(len, "ab") == 2
    assert await limiter(answer)(3) == 3
    async with limiter:
        pass
    assert await Policy("api", limiter=limiter).call(answer, 4) == 4
    with pytest.raises(RateLimited):
        await limiter.call(answer, 5)


def test_there_is_no_sync_form() -> None:
    limiter = RedisRateLimiter(Redis(), "api", 1)
    with pytest.raises(TypeError, match="event loop"):
        limiter.call_sync(len, "x")
    with pytest.raises(TypeError, match="event loop"):
        limiter(len)
    with pytest.raises(TypeError, match="event loop"):
        Policy("api", limiter=limiter).call_sync(len, "x")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"rate": 0}, "rate"),
        ({"rate": 2e6}, "rate"),
        ({"rate": 1, "max_wait": -1}, "max_wait"),
        ({"rate": 1, "timeout": 0}, "timeout"),
        ({"rate": 1, "timeout": float("inf")}, "timeout"),
    ],
)
def test_a_bad_setting_fails_by_name(settings: dict[str, float], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        RedisRateLimiter(Redis(), "api", **settings)  # type: ignore[arg-type]


# -- Redis is away


async def timed(call: Awaitable[Any]) -> tuple[Any, float]:
    began = time.monotonic()
    return await call, time.monotonic() - began


async def until_asked(limiter: RedisRateLimiter) -> None:
    async with asyncio.timeout(5):
        while (await limiter.try_acquire(key="probe")).degraded:  # noqa: ASYNC110 - it is the server that is waited for
            await asyncio.sleep(0.01)


async def test_frozen_killed_and_back(server: Server, client: Redis, told: list[Event], events: Events) -> None:
    limiter = RedisRateLimiter(client, "api", 1, 3600, burst=2, timeout=LIMIT, events=events)
    assert await taken(limiter, 5) == 2
    told.clear()
    server.freeze()
    try:
        for _ in range(3):
            decision, seconds = await timed(limiter.try_acquire())
            assert (decision.allowed, decision.degraded, limiter.degraded) == (True, True, True)
            assert LIMIT * 0.9 <= seconds < LIMIT + 0.2
        crowd, seconds = await timed(asyncio.gather(*(limiter.try_acquire() for _ in range(50))))
        assert all(decision.degraded for decision in crowd)
        assert seconds < LIMIT + 0.4
    finally:
        server.thaw()
    await until_asked(limiter)
    assert await taken(limiter, 5) == 0
    server.kill()
    for _ in range(3):
        decision, seconds = await timed(limiter.try_acquire())
        assert (decision.allowed, decision.degraded) == (True, True)
        assert seconds < LIMIT + 0.2
    server.start()
    await until_asked(limiter)
    assert await taken(limiter, 5) == 2  # it has forgotten
    outages = [type(event) for event in told if not isinstance(event, RateLimitRejected)]
    assert outages == [RateLimitStoreLost, RateLimitStoreBack] * 2
    assert told[0] == RateLimitStoreLost("api", "CallTimeout")


async def test_away_it_is_limited_locally_if_so_wanted(server: Server, client: Redis) -> None:
    def limiter(local: RateLimiter | KeyedRateLimiter) -> RedisRateLimiter:
        return RedisRateLimiter(client, "api", 1, 3600, burst=9, timeout=LIMIT, local=local)

    one = limiter(RateLimiter("local", 1, 3600, burst=2))
    keyed = limiter(KeyedRateLimiter("local", 1, 3600, burst=2))
    server.kill()
    try:
        assert await taken(one, 5, key="a") == 2
        assert [await taken(keyed, 5, key=key) for key in ("a", "b")] == [2, 2]
        refused = await keyed.try_acquire(key="a")
        assert (refused.allowed, refused.degraded) == (False, True)
        with pytest.raises(RateLimited):
            await one.wait()
    finally:
        server.start()


async def test_failing_closed_it_raises(server: Server, client: Redis, told: list[Event], events: Events) -> None:
    limiter = RedisRateLimiter(client, "api", 1, 3600, timeout=LIMIT, fail_open=False, events=events)
    server.kill()
    try:
        for _ in range(3):
            with pytest.raises(RateLimiterUnavailable) as caught:
                await limiter.wait()
            assert isinstance(caught.value.__cause__, (RedisConnectionError, OSError))
        assert [type(event) for event in told] == [RateLimitStoreLost]
    finally:
        server.start()
    assert await limiter.wait() == 0.0
    assert [type(event) for event in told] == [RateLimitStoreLost, RateLimitStoreBack]


async def test_an_open_circuit_spares_the_timeout(server: Server, client: Redis) -> None:
    patience = 1.0  # s that each of the calls would take
    policy = Policy("redis", timeout=patience, hard=True, breaker=CircuitBreaker("redis", failure_threshold=2))
    limiter = RedisRateLimiter(client, "api", 1, 3600, timeout=2 * patience, call=policy.call)
    server.freeze()
    try:
        for _ in range(2):
            assert (await limiter.try_acquire()).degraded
        decision, seconds = await timed(asyncio.gather(*(limiter.try_acquire() for _ in range(100))))
        assert all(each.degraded for each in decision)
        assert seconds < patience
    finally:
        server.thaw()


# -- without a server


Action = Callable[[], Awaitable[Any]]


async def test_only_calls_begun_since_the_last_change_begin_or_end_an_outage(told: list[Event], events: Events) -> None:
    clock = FakeClock()
    answers: list[asyncio.Future[Any]] = []

    async def call(_: Action) -> Any:
        answers.append(asyncio.get_running_loop().create_future())
        return await answers[-1]

    limiter = RedisRateLimiter(Redis(), "api", 1, timeout=9, call=call, clock=clock, events=events)

    async def begin(number: int) -> list[asyncio.Task[Any]]:
        tasks = [asyncio.create_task(limiter.try_acquire()) for _ in range(number)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return tasks

    first = await begin(3)
    answers[0].set_exception(CallTimeout("redis", 1.0))
    await clock.advance(1)
    answers[1].set_result([1, 1, -1])  # from before: it proves nothing now
    second = await begin(3)
    answers[3].set_exception(ConnectionResetError())
    answers[2].set_exception(OSError())
    await clock.advance(2)
    assert told == [RateLimitStoreLost("api", "CallTimeout")]
    answers[4].set_result([1, 1, -1])
    await clock.advance(0)
    answers[5].set_exception(OSError())  # from before again
    await clock.advance(0)
    assert told == [RateLimitStoreLost("api", "CallTimeout"), RateLimitStoreBack("api", 3.0)]
    assert [(await task).degraded for task in first + second] == [True, False, True, True, False, True]


async def test_a_stuck_access_is_left_at_the_timeout_and_too_many_are_not_begun() -> None:
    clock = FakeClock()
    release = asyncio.Event()
    begun: list[int] = []

    async def call(_: Action) -> Any:
        begun.append(1)
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return [1, 1, -1]

    limiter = RedisRateLimiter(Redis(), "api", 1, timeout=0.5, call=call, max_abandoned=3, clock=clock)
    for number in range(1, 6):
        ask = asyncio.create_task(limiter.try_acquire())
        await clock.advance(0.5)
        assert ask.result().degraded
        assert len(begun) == min(number, 3)
    release.set()
    await clock.advance(0)
    again = asyncio.create_task(limiter.try_acquire())
    await clock.advance(0)
    assert not again.result().degraded


async def test_what_is_no_outage_is_raised(told: list[Event], events: Events) -> None:
    async def call(_: Action) -> Any:
        raise KeyError("a bug")

    limiter = RedisRateLimiter(Redis(), "api", 1, call=call, events=events)
    with pytest.raises(KeyError):
        await limiter.try_acquire()
    assert told == []


async def test_cancelled_while_asking_nothing_is_left() -> None:
    clock = FakeClock()

    async def call(_: Action) -> Any:
        await clock.sleep(60)

    limiter = RedisRateLimiter(Redis(), "api", 1, timeout=9, call=call, clock=clock)
    ask = asyncio.create_task(limiter.try_acquire())
    await clock.advance(1)
    ask.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ask
    await clock.advance(0)
    assert clock.pending == 0
    assert not limiter.degraded
