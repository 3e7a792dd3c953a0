"""Kept answers, and one call among processes: on a real Valkey that is frozen and killed, and in memory without it."""

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from ai_core.degradation import REDIS
from ai_core.outbound import neighbours, response_copies
from ai_core.outbound.pipelines import PATIENCE
from ai_core.outbound.response_copies import ResponseCopies
from ai_core.ports import Claim, ProviderFailed
from ai_core.query import Completion, Query
from ai_core.usecases.chain import AllProvidersGone, Chain
from devstack import wheels
from resilience import SYSTEM_CLOCK, CircuitBreaker, FakeClock, MemoryCache, RowPolicy
from service_kit import redis_client
from services.ai_core.tests.chain_fakes import TIMES, World, completion, query

KEY = query().key()
ROW_LIMIT = REDIS.call_timeout


class Server:
    """A Valkey of its own."""

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

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def heal(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
        else:
            self.start()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


class Process:
    """What one AI Core process has: its own memory, connections, and circuit of Redis."""

    def __init__(self, port: int) -> None:
        self.client = redis_client.create_client(f"redis://127.0.0.1:{port}/0")
        breaker = CircuitBreaker(
            REDIS.id,
            failure_threshold=REDIS.max_failures,
            recovery_timeout=REDIS.open_seconds,
            success_threshold=1,
            classify=redis_client.classify,
        )
        self.policy = RowPolicy(REDIS, breaker=breaker)
        self.memory = MemoryCache(1_000_000, 3_600.0)
        self.answers = ResponseCopies(self.client, self.policy.call, self.memory, SYSTEM_CLOCK, ttl=3_600.0)
        self._writing = asyncio.ensure_future(self.answers.write_forever())
        self._watching: asyncio.Future[None] | None = None

    def watch(self) -> None:
        """It shows itself to others, and looks for them."""
        self._watching = asyncio.ensure_future(self.answers.neighbours.watch())

    async def die(self) -> None:
        """No more of it is seen."""
        await _ended(self._watching)

    async def close(self) -> None:
        await _ended(self._watching)
        await _ended(self._writing)
        await self.answers.close()
        await self.client.aclose()


async def _ended(task: asyncio.Future[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("valkey"))
    yield server
    server.kill()


@pytest_asyncio.fixture
async def started(server: Server) -> AsyncIterator[tuple[Process, Process]]:
    """They neither show themselves nor look yet."""
    server.heal()
    one, other = Process(server.port), Process(server.port)
    await one.client.flushall()
    yield one, other
    server.heal()
    await one.close()
    await other.close()


@pytest_asyncio.fixture
async def two(started: tuple[Process, Process]) -> tuple[Process, Process]:
    for process in started:
        process.watch()
    await until(lambda: is_known(started[0], 2))
    return started


async def there(process: Process, key: str = KEY) -> Completion:
    """The answer, once it is there."""
    end = time.monotonic() + 5
    while (found := await process.answers.get(key)) is None:
        assert time.monotonic() < end, "it does not come"
        await asyncio.sleep(0.01)
    return found


# -- keys

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_queries = st.builds(
    Query,
    messages=st.lists(st.dictionaries(st.text(), _json, max_size=3), max_size=3),
    tenant=st.text(),
    parameters=st.dictionaries(st.text(), _json, max_size=3),
    prefer=st.text(),
    agent=st.text(),
)


def _exact(value: Any) -> Any:
    """For comparing as JSON does: 1, 1.0 and True are three values."""
    if isinstance(value, dict):
        return {key: _exact(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_exact(one) for one in value]
    return (type(value).__name__, repr(value))


def _shape(asked: Query) -> Any:
    return _exact([list(asked.messages), asked.tenant, dict(asked.parameters), asked.prefer, asked.agent])


@given(_queries, _queries)
def test_two_queries_that_differ_in_anything_never_share_a_key(one: Query, other: Query) -> None:
    assert (one.key() == other.key()) is (_shape(one) == _shape(other))


@given(_queries, st.text(), st.sampled_from(["tenant", "agent", "prefer"]))
def test_a_change_of_one_part_changes_the_key(asked: Query, text: str, part: str) -> None:
    changed = replace(asked, **{part: text})  # type: ignore[arg-type]
    assert (changed.key() == asked.key()) is (getattr(asked, part) == text)


@given(_queries)
def test_the_order_of_members_and_what_shapes_no_answer_do_not_change_it(asked: Query) -> None:
    turned = dict(reversed(list(asked.parameters.items())))
    assert replace(asked, parameters=turned, keep=False, fresh_seconds=5.0).key() == asked.key()


# -- stores


async def test_an_answer_kept_by_one_process_is_found_by_the_other(two: tuple[Process, Process]) -> None:
    one, other = two
    given_answer = replace(completion("gpt-4"), cost=0.5, fallback_from="openai:x")
    before = time.time()
    one.answers.keep(KEY, given_answer)
    found = await there(other)
    assert found.as_of is not None
    assert before <= found.as_of <= time.time()
    assert replace(found, as_of=None) == given_answer
    assert await other.answers.get(query(tenant="bob").key()) is None
    assert 0 < await one.client.pttl(f"ai-core:answer:{KEY}") <= 3_600_000
    kept = {neighbours.KEY.encode(), f"ai-core:answer:{KEY}".encode()}
    assert set(await one.client.keys("*")) == kept, "nothing of the query but its hash"


@pytest.mark.parametrize("fault", ["freeze", "kill"])
async def test_without_redis_answers_are_kept_in_memory(
    server: Server, two: tuple[Process, Process], fault: str
) -> None:
    one, other = two
    getattr(server, fault)()
    one.answers.keep(KEY, completion("gpt-4"))
    kept = await one.answers.get(KEY)
    assert kept is not None
    assert await other.answers.get(KEY) is None
    server.heal()
    assert (await there(other)).text == kept.text, "what could not be written is written when Redis is back"


@pytest.mark.parametrize("fault", ["freeze", "kill"])
async def test_redis_delays_a_request_once_at_most_and_by_less_than_its_limit(
    server: Server, two: tuple[Process, Process], fault: str
) -> None:
    one, _ = two
    await one.answers.claim(KEY, 1.0)
    getattr(server, fault)()
    took = []
    for number in range(60):
        began = time.monotonic()
        world = World(answers=one.answers)
        assert (await world.chain.complete(query(str(number)))).value.text
        took.append(time.monotonic() - began)
        await asyncio.sleep(0.005)
    assert max(took) < min(ROW_LIMIT, PATIENCE + 0.15)
    assert sum(seconds > 0.1 for seconds in took) <= REDIS.max_failures
    one.policy.breaker.force_open()
    began = time.monotonic()
    await asyncio.gather(*(one.answers.claim(str(number), 1.0) for number in range(100)))
    assert time.monotonic() - began < ROW_LIMIT


async def test_what_is_too_large_or_too_much_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    memory = MemoryCache(20_000, 60.0, clock)
    answers = ResponseCopies(None, _nowhere, memory, clock, ttl=60.0)
    answers.keep("large", completion("gpt-4", text="x" * response_copies.MAX_ANSWER))
    assert await answers.get("large") is None
    monkeypatch.setattr(response_copies, "MAX_BEHIND", 10)
    for number in range(1_000):
        answers.keep(str(number), completion("gpt-4"))
    assert memory.bytes_used <= 20_000
    assert len(answers._behind) == 10
    assert await answers.get("999") is not None
    await clock.advance(61.0)
    assert await answers.get("999") is None


async def test_what_is_no_answer_is_none(two: tuple[Process, Process]) -> None:
    one, _ = two
    for value in (b"", b"{}", b"\xff", b"[1]", b'[1,"",[1,2],["p"],{}]'):
        await one.client.set(f"ai-core:answer:{KEY}", value)
        assert await one.answers.get(KEY) is None


# -- one call among processes


async def test_two_processes_that_ask_the_same_make_one_call(two: tuple[Process, Process]) -> None:
    worlds = [World(answers=process.answers) for process in two]
    chains = [Chain(world.guarded, world.answers, clock=SYSTEM_CLOCK, times=TIMES) for world in worlds]
    for world in worlds:
        world.providers["openai"].slow = True
    callers = [asyncio.ensure_future(chain.complete(query())) for chain in chains for _ in range(50)]
    await asyncio.sleep(0.1)
    for world in worlds:
        world.providers["openai"].go.set()
    answers = [await caller for caller in callers]
    assert sum(world.calls(0) for world in worlds) == 1
    assert {(one.value.text, one.value.cached, one.degradations) for one in answers} == {("answer of gpt-4", False, ())}
    assert await two[0].client.get(f"ai-core:asking:{KEY}") is None


async def test_a_holder_that_fails_or_dies_does_not_fail_the_others(two: tuple[Process, Process]) -> None:
    one, other = two
    world = World(answers=other.answers)
    chain = Chain(world.guarded, world.answers, clock=SYSTEM_CLOCK, times=TIMES)
    claim = await one.answers.claim(KEY, 10.0)
    assert (await other.answers.claim(KEY, 10.0)).holder == claim.mine
    asking = asyncio.ensure_future(chain.complete(query()))
    await asyncio.sleep(0.05)
    assert not asking.done()
    one.answers.release(KEY, claim.mine)
    assert (await asking).value.text == "answer of gpt-4"
    dead = await one.answers.claim(query("dead").key(), 10.0)
    assert dead.mine
    began = time.monotonic()
    assert (await chain.complete(query("dead"))).value.text == "answer of gpt-4"
    assert time.monotonic() - began < TIMES.chain


async def test_nobody_waits_long_for_a_process_that_has_gone(
    two: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    claim = await one.answers.claim(KEY, 60.0)
    following = asyncio.ensure_future(other.answers.follow(KEY, claim.mine, 60.0))
    for name, seconds in (("BEAT", 0.02), ("GONE", 0.3)):
        monkeypatch.setattr(neighbours, name, seconds)
    await asyncio.sleep(0.4)
    assert not following.done(), "it is slow, and lives"
    await one.die()
    assert await asyncio.wait_for(following, 5.0) is None
    assert (await other.answers.claim(KEY, 60.0)).holder == claim.mine, "the claim alone would have held it"


async def test_a_claim_is_given_back_after_a_failure_and_by_its_holder_only(two: tuple[Process, Process]) -> None:
    one, other = two
    world = World(answers=one.answers)
    for at in range(3):
        world.told(at, ProviderFailed("status 500"))
    chain = Chain(world.guarded, world.answers, clock=SYSTEM_CLOCK, times=TIMES)
    with pytest.raises(AllProvidersGone):
        await chain.complete(query())
    end = time.monotonic() + 5
    while not (mine := (await other.answers.claim(KEY, 10.0)).mine):
        assert time.monotonic() < end, "the claim was not given back"
        await asyncio.sleep(0.01)
    one.answers.release(KEY, "somebody else's")
    one.answers.keep("k", completion("gpt-4"))
    await there(other, "k")
    assert (await one.answers.claim(KEY, 10.0)).holder == mine


async def test_one_process_that_asks_the_same_again_and_again_never_waits_for_itself(
    two: tuple[Process, Process],
) -> None:
    """Each answer is kept before the claim of an earlier one has been given back."""
    answers, key = two[0].answers, query("again and again").key()
    for _ in range(20):
        claim = await answers.claim(key, 60)
        assert not claim.holder
        answers.keep(key, completion("gpt-4"), claim.mine)
    end = time.monotonic() + 10
    while (await two[1].answers.claim(key, 60)).holder:
        assert time.monotonic() < end, "the claim was not given back"
        await asyncio.sleep(0.01)


async def test_an_older_answer_is_not_taken_for_the_holders(two: tuple[Process, Process]) -> None:
    one, other = two
    one.answers.keep(KEY, completion("gpt-4", text="old"))
    await there(other)
    holder = (await one.answers.claim(KEY, 10.0)).mine
    following = asyncio.ensure_future(other.answers.follow(KEY, holder, 2.0))
    one.answers.release(KEY, holder)
    assert await following is None


# -- alone


@pytest_asyncio.fixture
async def alone(
    server: Server, started: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
) -> tuple[Process, Process]:
    """The first process looks around and has found nobody; the second has not come yet."""
    for name, seconds in (("BEAT", 0.02), ("GONE", 0.3), ("SETTLED", 0.5)):
        monkeypatch.setattr(neighbours, name, seconds)
    started[0].watch()
    await until(lambda: is_alone(started[0]))
    return started


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    end = time.monotonic() + 10
    while not await holds():
        assert time.monotonic() < end, "it does not come to that"
        await asyncio.sleep(0.005)


async def is_alone(process: Process) -> bool:
    return process.answers.neighbours.alone()


async def is_not_alone(process: Process) -> bool:
    return not process.answers.neighbours.alone()


async def is_known(process: Process, number: int) -> bool:
    """Whether the register has so many processes; the server may be away."""
    try:
        return await process.client.zcard(neighbours.KEY) == number
    except redis_client.AWAY:
        return False


async def test_a_process_that_is_alone_asks_for_no_claim_until_another_has_come(alone: tuple[Process, Process]) -> None:
    one, other = alone
    assert await one.answers.claim(KEY, 10.0) == Claim()
    assert await one.client.exists(f"ai-core:asking:{KEY}") == 0
    other.watch()
    await until(lambda: is_known(one, 2))
    claim = await other.answers.claim(KEY, 10.0)
    assert claim.mine
    assert await one.answers.claim(KEY, 10.0) == Claim(holder=claim.mine), "who has just come is known to all"
    began = time.monotonic()
    await other.die()
    await until(lambda: is_alone(one))
    assert time.monotonic() - began > 0.6, "one that is gone may come back for a while"


async def test_while_redis_is_away_and_after_it_lost_everything_nobody_believes_to_be_alone(
    server: Server, alone: tuple[Process, Process]
) -> None:
    one, _ = alone
    server.freeze()
    await until(lambda: is_not_alone(one))
    server.heal()
    await until(lambda: is_alone(one))
    server.kill()
    await until(lambda: is_not_alone(one))
    server.heal()
    await until(lambda: is_known(one, 1))
    assert (await one.answers.claim(KEY, 10.0)).mine, "others may still have to come back"
    await until(lambda: is_alone(one))


async def _nowhere(*_: Any) -> Any:
    raise ConnectionError
