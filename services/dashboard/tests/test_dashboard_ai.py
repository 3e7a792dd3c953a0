"""Row D3 (dashboard.ai_core) with a real AI Core and a real Redis: what waits is made once, in order, for its owner."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from dashboard.degradation import AI_CORE, ORIGINAL_TEXT, REDIS_CACHE, REDIS_QUEUE, TEXT_ONLY
from dashboard.model import KeyReused
from dashboard.outbound.ai_copies import AiCoreCopies, agent_of, memory_of
from dashboard.outbound.ai_core import QUICK, GrpcAiCore
from dashboard.outbound.ai_queue import AiQueueTarget
from dashboard.outbound.all_queues import AllQueues
from dashboard.usecases.assistant import Agents, Language, Memories
from dashboard.usecases.creations import Creations
from devstack.stack import Stack
from devstack.topology import Topology
from resilience import (
    SYSTEM_CLOCK,
    CircuitBreaker,
    CircuitBreakerOpen,
    Drainer,
    DrainSettings,
    DurableWriter,
    MemoryCache,
    Operation,
    OperationStatus,
    RowPolicy,
    WriteRefused,
)
from resilience.integrations.redis_queue import RedisQueueStore
from service_kit import context
from service_kit.copies import CopyStore
from service_kit.errors import Conflict, DependencyUnavailable
from service_kit.redis_client import create_client
from service_kit.rpc_client import channel, is_dependency_failure
from service_kit.tokens import TokenIssuer

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMPONENTS = frozenset({"postgres", "redis", "providers", "ai-core"})
PATIENCE = 31.0
"""As the Dashboard's own, for chat; the chain that AI Core has here is as long as for real models."""
NOTICED = 2.0
"""Seconds until a frozen AI Core is known to be one: 1.5 by the channel's keepalive, and a busy machine."""
FAST = {"interval": 3600.0, "retry_waits": (0.01, 0.01, 0.01), "contended_wait": 0.01}


class World:
    """The Dashboard's side of row D3, whose circuit and drains the test holds in its hand."""

    def __init__(self, stack: Stack, client: Redis) -> None:
        self.queue_is_away = False
        issuer = TokenIssuer(stack.state.secret("jwt"))
        self._token_for: Callable[[str], str] = lambda owner: issuer.issue(owner, "test")
        self.channel = channel(stack.grpc("ai-core"))
        self.ai_core = GrpcAiCore(self.channel, patience=PATIENCE)
        self.store = RedisQueueStore(client, "dashboard-ai", call=self._call)
        breaker = CircuitBreaker(AI_CORE.id, success_threshold=1, classify=is_dependency_failure)
        self.policy = RowPolicy(AI_CORE, breaker=breaker, timeout=PATIENCE)
        self.drainer = self.another_drainer()
        writer = DurableWriter(self.policy, self.store, self.drainer, fallback=REDIS_QUEUE, settle_wait=3.0)
        creations = Creations(writer, SYSTEM_CLOCK, key_secret=b"k")
        memory = MemoryCache(1_000_000, 60)
        self.copies = CopyStore(client, self._call, memory, SYSTEM_CLOCK)
        copies = AiCoreCopies(self.copies)
        self.agents = Agents(self.ai_core, self.policy, creations, copies)
        self.memories = Memories(self.ai_core, self.policy, creations, copies)
        self.language = Language(self.ai_core, self.policy)

    def another_drainer(self, **settings: Any) -> Drainer:
        """As another instance has it."""
        target = AiQueueTarget(self.ai_core, self._token_for)
        return Drainer(self.store, target, call=self.policy.call, settings=DrainSettings(**{**FAST, **settings}))

    async def _call(self, action: Callable[[], Awaitable[Any]]) -> Any:
        if self.queue_is_away:
            raise OSError
        return await action()

    def user(self) -> str:
        """Somebody new, whose request the test answers from now on."""
        owner = str(uuid.uuid4())
        self.act_for(owner)
        return owner

    def act_for(self, owner: str) -> None:
        context.bind(context.RequestContext("test", self._token_for(owner)))

    async def create(self, owner: str, name: str = "Ada", key: str | None = None) -> tuple[str, str]:
        """Ids of the agent, and of the operation that is to make it."""
        made = (await self.agents.create(owner, name, "Be brief.", "", key)).value
        return made.value.id, made.operation_id

    async def names(self) -> list[str]:
        """What AI Core itself has for the current user, oldest first."""
        return [agent.name for agent in (await self.ai_core.agents(100, None)).value.items][::-1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    topology = Topology(only=COMPONENTS, service_env={"ai-core": {"AI_CHAIN_TIMEOUT": "30s"}})
    async with Stack(tmp_path_factory.mktemp("d3"), topology, port_base=None) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def world(stack: Stack) -> AsyncIterator[World]:
    """A world whose AI Core answers; whatever the test breaks is mended."""
    client = create_client(stack.url("redis"))
    await client.flushall()
    found = World(stack, client)
    for component in COMPONENTS:
        await stack.heal(component)
    await answering(found)
    yield found
    for component in COMPONENTS:
        await stack.heal(component)
    await found.channel.close()
    await client.aclose()


async def answering(world: World) -> None:
    """Returns when AI Core reaches its database."""
    world.user()
    async with asyncio.timeout(15):
        while True:
            try:
                await world.ai_core.agents(1, None)
            except Exception:  # noqa: BLE001 - whatever it is, it is not up yet
                await asyncio.sleep(0.05)
            else:
                return


async def test_an_agent_is_made_at_once_under_the_id_that_was_chosen_for_it(world: World) -> None:
    owner = world.user()
    agent_id, operation_id = await world.create(owner)
    assert operation_id == ""
    assert (await world.ai_core.agent(agent_id)).value.name == "Ada"
    assert (await world.store.stats()).depth == 0


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_what_is_made_while_ai_core_is_away_waits_and_is_made_once(
    world: World, stack: Stack, fault: str
) -> None:
    owner = world.user()
    await world.create(owner, "before")
    assert [agent.name for agent in (await world.agents.page(owner, 50, None)).value.items] == ["before"]
    await getattr(stack, fault)("ai-core")
    promised, operation_id = await world.create(owner, "waits")
    assert operation_id
    world.policy.breaker.force_open()
    await world.create(owner, "waits longer")

    page = await world.agents.page(owner, 50, None)
    assert [agent.name for agent in page.value.items] == ["waits longer", "waits", "before"]
    assert [agent.pending for agent in page.value.items] == [True, True, False]
    assert (page.pending, page.as_of is not None) == (True, True)
    assert [one.fallback for one in page.degradations] == [REDIS_CACHE]
    read = await world.agents.get(owner, promised)
    assert (read.value.name, read.pending, [one.fallback for one in read.degradations]) == (
        "waits",
        True,
        [REDIS_QUEUE],
    )

    await stack.heal("ai-core")
    await answering(world)
    world.act_for(owner)
    world.policy.breaker.reset()
    await world.drainer.drain()
    assert await world.names() == ["before", "waits", "waits longer"]
    assert (await world.ai_core.agent(promised)).value.name == "waits"
    record = await world.store.record(operation_id)
    assert record is not None
    assert record.status is OperationStatus.APPLIED
    healthy = await world.agents.page(owner, 50, None)
    assert (healthy.pending, healthy.degraded) == (False, False)


async def test_only_what_waits_is_shown_when_nothing_else_is_known(world: World) -> None:
    owner = world.user()
    world.policy.breaker.force_open()
    with pytest.raises(CircuitBreakerOpen):
        await world.agents.page(owner, 50, None)
    await world.create(owner, "waits")
    page = await world.agents.page(owner, 50, None)
    assert [agent.name for agent in page.value.items] == ["waits"]
    assert [one.fallback for one in page.degradations] == [REDIS_QUEUE]
    other = world.user()
    with pytest.raises(CircuitBreakerOpen):
        await world.agents.page(other, 50, None)


async def test_a_memory_is_kept_while_ai_core_is_away(world: World) -> None:
    owner = world.user()
    world.policy.breaker.force_open()
    kept = await world.memories.create(owner, "The key is under the mat", ["home", "home"], None)
    memory = kept.value.value
    assert (memory.embedding, memory.tags, memory.pending, kept.pending) == ("pending", ("home",), True, True)
    assert [one.text for one in (await world.memories.page(owner, 50, None)).value.items] == [memory.text]
    with pytest.raises(CircuitBreakerOpen):
        await world.memories.search("key", 10)
    world.policy.breaker.reset()
    await world.drainer.drain()
    found = await world.memories.search("key", 10)
    assert [(one.id, one.tags) for one, _ in found.value.matches] == [(memory.id, ("home",))]
    await world.memories.delete(owner, memory.id)
    assert (await world.memories.page(owner, 50, None)).value.items == []


async def test_a_text_comes_back_as_it_is(world: World) -> None:
    world.user()
    made = await world.language.translate("Good morning", "de", "")
    assert (made.value.translated, made.value.simulated, made.degraded) == (True, True, False)
    world.policy.breaker.force_open()
    made = await world.language.translate("Good morning", "de", "")
    assert (made.value.text, made.value.translated) == ("Good morning", False)
    assert [one.fallback for one in made.degradations] == [ORIGINAL_TEXT]
    spoken = await world.language.speak("Good morning", "")
    assert (spoken.value.text, spoken.value.audio) == ("Good morning", None)
    assert [one.fallback for one in spoken.degradations] == [TEXT_ONLY]


async def test_two_drainers_at_once_make_everything_once_and_in_order(world: World) -> None:
    owners = [world.user() for _ in range(3)]
    world.policy.breaker.force_open()
    for number in range(8):
        for owner in owners:
            await world.create(owner, f"agent {number}")
    world.policy.breaker.reset()
    await asyncio.gather(*(world.another_drainer(batch_size=5).drain() for _ in range(3)))
    for owner in owners:
        world.act_for(owner)
        assert await world.names() == [f"agent {number}" for number in range(8)]
    assert ((await world.store.stats()).depth, (await world.store.stats()).dead) == (0, 0)


async def test_a_creation_that_was_done_without_an_answer_is_not_done_again(world: World) -> None:
    owner = world.user()
    world.policy.breaker.force_open()
    agent_id, operation_id = await world.create(owner)
    await world.ai_core.create_agent(agent_id, "Ada", "Be brief.", "", operation_id)
    world.policy.breaker.reset()
    await world.another_drainer(ttl=-1).drain()
    assert (await world.store.stats()).dead == 0
    record = await world.store.record(operation_id)
    assert record is not None
    assert record.status is OperationStatus.APPLIED
    assert await world.names() == ["Ada"]


async def test_what_is_too_old_is_buried_and_nothing_can_make_it_any_more(world: World) -> None:
    owner = world.user()
    world.policy.breaker.force_open()
    agent_id, operation_id = await world.create(owner)
    memory = (await world.memories.create(owner, "Too late", [], None)).value
    world.policy.breaker.reset()
    await world.another_drainer(ttl=-1).drain()
    assert [letter["reason"] for letter in await world.store.dead(10)] == ["expired", "expired"]
    with pytest.raises(Conflict):
        await world.ai_core.create_agent(agent_id, "Ada", "Be brief.", "", operation_id)
    with pytest.raises(Conflict):
        await world.ai_core.create_memory(memory.value.id, "Too late", [], memory.operation_id)
    assert await world.store.replay(operation_id)
    await world.drainer.drain()
    assert await world.names() == ["Ada"]


async def test_a_creation_that_ai_core_refuses_is_buried_and_others_go_on(world: World) -> None:
    owner = world.user()
    world.policy.breaker.force_open()
    await world.create(owner, "x" * 101)
    await world.create(owner, "fine")
    await world.store.append(Operation(uuid.uuid4().hex, "agent.explode", f"agents:{owner}", owner, {}))
    await world.store.append(Operation(uuid.uuid4().hex, "agent.create", f"agents:{owner}", owner, {"id": 1}))
    world.policy.breaker.reset()
    await world.drainer.drain()
    assert await world.names() == ["fine"]
    assert {letter["error"] for letter in await world.store.dead(10)} == {"VALIDATION_ERROR", "not a known creation"}


async def test_ai_core_without_its_database_buries_nothing(world: World, stack: Stack) -> None:
    owner = world.user()
    world.policy.breaker.force_open()
    await world.create(owner)
    world.policy.breaker.reset()
    await stack.kill("postgres")
    await world.drainer.drain()
    assert ((await world.store.stats()).depth, (await world.store.stats()).dead) == (1, 0)
    await stack.heal("postgres")
    await answering(world)
    world.act_for(owner)
    await world.drainer.drain()
    assert await world.names() == ["Ada"]


async def test_a_repeated_key_is_the_same_creation(world: World) -> None:
    owner = world.user()
    world.policy.breaker.force_open()
    first = await world.create(owner, "Ada", "key")
    assert await world.create(owner, "Ada", "key") == first
    with pytest.raises(KeyReused):
        await world.create(owner, "Bea", "key")
    assert (await world.create(world.user(), "Ada", "key"))[0] != first[0]
    world.policy.breaker.reset()
    await world.drainer.drain()
    world.act_for(owner)
    assert await world.create(owner, "Ada", "key") == (first[0], "")
    assert await world.names() == ["Ada"]


async def test_without_queue_and_ai_core_nothing_is_accepted(world: World) -> None:
    owner = world.user()
    world.policy.breaker.force_open()
    world.queue_is_away = True
    with pytest.raises(WriteRefused) as refused:
        await world.create(owner)
    assert (refused.value.queued, refused.value.certain) == (False, True)


async def test_an_operator_sees_all_queues_as_one(world: World, stack: Stack) -> None:
    client = create_client(stack.url("redis"))
    other = RedisQueueStore(client, "dashboard")
    queues = AllQueues("dashboard", (other, world.store))
    owner = world.user()
    world.policy.breaker.force_open()
    ids = []
    for number in range(3):
        ids.append((await world.create(owner, f"agent {number}"))[1])
        ids.append(uuid.uuid4().hex)
        await other.append(Operation(ids[-1], "user.update", "user:x", "x", {}))
    assert ((await queues.stats()).depth, queues.seen["dashboard-ai"].depth) == (6, 3)
    seen: list[str] = []
    position = ""
    while page := await queues.list(2, position):
        seen += [item["id"] for item in page]
        position = page[-1]["position"]
    assert sorted(seen) == sorted(ids)
    world.policy.breaker.reset()
    await world.another_drainer(ttl=-1).drain()
    assert [letter["id"] for letter in await queues.dead(10)] == ids[::2]
    assert await queues.replay(ids[0])
    assert not await queues.replay(ids[0])
    assert await queues.discard(ids[2])
    assert await queues.clear() == 1
    assert ((await queues.stats()).depth, (await queues.stats()).dead) == (4, 0)
    await client.aclose()


@pytest.mark.parametrize("value", [None, [], {}, {"id": 5}, {"id": ""}])
async def test_a_copy_without_an_id_is_none(value: Any) -> None:
    assert agent_of(value) is None
    assert memory_of(value) is None


async def test_a_copy_with_gaps_gets_defaults() -> None:
    agent = agent_of({"id": "a", "name": None, "created_at": "x"})
    assert agent is not None
    assert (agent.name, agent.created_at) == ("", 0.0)
    memory = memory_of({"id": "m", "tags": ["a", None], "embedding": None})
    assert memory is not None
    assert (memory.tags, memory.embedding) == (("a",), "pending")


async def test_what_ai_core_itself_has_queued_is_promised_and_found_again(world: World, stack: Stack) -> None:
    owner = world.user()
    agent_id, _ = await world.create(owner)
    await world.names()
    await stack.kill("postgres")
    made = await world.agents.create(owner, "Later", "", "", None)
    changed = await world.agents.change(owner, agent_id, {"name": "Bea"})
    assert made.value.value.name == "Later"
    assert (made.pending, changed.pending, (await world.store.stats()).depth) == (True, True, 0)
    for served in (made, changed):
        assert [one.fallback for one in served.degradations] == [REDIS_QUEUE]
        record = await world.ai_core.operation(served.value.operation_id)
        assert record is not None
        assert record.status in (OperationStatus.QUEUED, OperationStatus.APPLYING)
    read, page = await world.agents.get(owner, agent_id), await world.agents.page(owner, 50, None)
    assert (read.value.name, read.pending, read.as_of is None) == ("Bea", True, False)
    assert ([agent.name for agent in page.value.items], page.pending) == (["Later", "Bea"], True)
    await stack.heal("postgres")

    async def applied() -> bool:
        record = await world.ai_core.operation(made.value.operation_id)
        return record is not None and record.status is OperationStatus.APPLIED

    async with asyncio.timeout(10):
        while not await applied():  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.05)
    assert await world.names() == ["Bea", "Later"]
    assert await world.ai_core.operation("0" * 32) is None
    world.act_for(str(uuid.uuid4()))
    assert await world.ai_core.operation(made.value.operation_id) is None


async def test_a_creation_that_ai_core_has_only_queued_is_kept_until_it_is_made(world: World, stack: Stack) -> None:
    owner = world.user()
    world.policy.breaker.force_open()
    agent_id, operation_id = await world.create(owner, "Late")
    assert operation_id
    await stack.kill("postgres")
    world.policy.breaker.reset()
    for _ in range(2):
        await world.drainer.drain()
        assert (await world.store.stats()).depth == 1
    await stack.heal("postgres")
    async with asyncio.timeout(10):
        while (await world.store.stats()).depth:
            await world.drainer.drain()
            await asyncio.sleep(0.05)
    world.act_for(owner)
    assert await world.names() == ["Late"]
    assert (await world.ai_core.agent(agent_id)).value.name == "Late"


async def simulator(stack: Stack, method: str, path: str, body: Any = None) -> Any:
    """The simulated provider's admin API."""
    url = f"{stack.url('providers')}/admin/{path}"
    async with aiohttp.ClientSession() as session, session.request(method, url, json=body) as answer:
        assert answer.status == 200
        return await answer.json()


async def order(stack: Stack, fault: str, **members: Any) -> None:
    """What it is to do wrong with its first model."""
    await simulator(stack, "DELETE", "calls")
    await simulator(stack, "PUT", "faults/openai:gpt-4", {"fault": fault, **members})


async def asked(stack: Stack) -> None:
    """Returns when its first model has been asked."""
    async with asyncio.timeout(5):
        while "openai:gpt-4" not in await simulator(stack, "GET", "calls"):  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.02)


async def ended(work: Awaitable[Any]) -> tuple[Exception | None, float]:
    """What became of it, and seconds that it took."""
    begun = time.monotonic()
    try:
        await work
    except Exception as error:  # noqa: BLE001 - it is looked at
        return error, time.monotonic() - begun
    return None, time.monotonic() - begun


async def test_a_slow_model_is_waited_for_and_holds_nothing_up(world: World, stack: Stack) -> None:
    agent_id, _ = await world.create(world.user())
    await order(stack, "slow", seconds=2.5, times=1)  # longer than the row and a usual request
    talk = asyncio.ensure_future(world.agents.chat(agent_id, "Hello", ""))
    await asyncio.sleep(0)
    error, seconds = await ended(world.ai_core.agents(1, None))
    assert (error, seconds < QUICK, talk.done()) == (None, True, False)
    reply = (await talk).value
    assert (reply.model, reply.fallback_from, reply.simulated) == ("gpt-4", "", True)
    assert world.policy.status().failures == 0


@pytest.mark.row("D3")
async def test_nobody_waits_as_long_for_a_frozen_ai_core(world: World, stack: Stack) -> None:
    owner = world.user()
    agent_id, _ = await world.create(owner)

    async def chat(_: int = 0) -> None:
        await world.agents.chat(agent_id, "Hello", "")

    await order(stack, "hang", times=1)
    begun = asyncio.ensure_future(chat())
    await asked(stack)
    await stack.freeze("ai-core")
    frozen = [begun, *(asyncio.ensure_future(chat(at)) for at in range(2)), world.agents.page(owner, 5, None)]
    for error, seconds in await asyncio.gather(*(ended(one) for one in frozen)):
        assert error is None or isinstance(error, DependencyUnavailable), error
        assert seconds < NOTICED
    assert world.policy.status().failures >= 4, "each of them has told the circuit"
    error, seconds = await ended(chat())
    assert isinstance(error, DependencyUnavailable)
    assert seconds < NOTICED
    error, _ = await ended(chat())
    assert isinstance(error, CircuitBreakerOpen), "the fifth failure"
