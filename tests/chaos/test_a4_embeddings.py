"""Row A4, ai_core.embeddings: the local model serves for the provider; what is missing is embedded later."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from devstack.stack import Stack
from devstack.topology import Topology
from tests.conftest import ENV
from tests.harness.memories import AI_CORE, LOADED, LOCAL, Keeper, texts
from tests.harness.platform import Answer, Platform, eventually
from tests.harness.signals import metrics
from tests.harness.simulator import Simulator

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("A4"), pytest.mark.stack]

REMOTE = "openai:text-embedding-3-small"
EMBEDDINGS = "embeddings"
TARGET = "openai:embeddings"  # of the simulated provider
FAILURES = 3
DEADLINE = 2.4  # s
RECOVERY = 5.0  # s
NOTES = 12
WHOLE = ("kill", "freeze", "delay")
"""Faults of the provider's process; the others are of its embeddings."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """One with an embedding provider, although it is a simulated one."""
    topology = Topology(env={**ENV, "AI_EMBEDDING_MODEL": REMOTE})
    async with (
        Stack(tmp_path_factory.mktemp("embeddings"), topology, port_base=None) as stack,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
    ):
        platform = Platform(stack, session)
        await platform.healthy(30)
        yield platform


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def nothing_ordered(platform: Platform) -> AsyncIterator[None]:
    """Nothing that a test has ordered is left for the next one."""
    yield
    if platform.stack.units["providers"].running and not platform.stack.units["providers"].faults:
        await Simulator(platform).clear()


async def breaks(platform: Platform, fault: str) -> None:
    """The provider as a whole is gone, or only its embeddings are not well."""
    if fault in WHOLE:
        await getattr(platform.stack, fault)("providers")
    else:
        await Simulator(platform).order(TARGET, fault, seconds=30)


async def mends(platform: Platform, fault: str) -> None:
    if fault in WHOLE:
        await platform.stack.heal("providers")
    else:
        await Simulator(platform).clear()


def fallbacks(answer: Answer) -> set[str]:
    assert answer.seconds < DEADLINE, answer
    used = {name.strip() for name in answer.headers.get("x-fallback-used", "").split(",") if name.strip()}
    assert bool(used) == ("x-degraded-mode" in answer.headers), answer
    return used


async def opened(keeper: Keeper) -> None:
    """Waits until the circuit is open, searching all the while, which has to be answered in time by somebody."""

    async def is_open() -> bool:
        answer = await keeper.find("where is my bike")
        assert answer.status == 200, answer
        if fallbacks(answer):
            assert fallbacks(answer) == {"local-embedding"}
            assert answer.body["search"] == "semantic"
        return await keeper.platform.circuit(EMBEDDINGS, AI_CORE) == "open"

    await eventually(is_open, "the circuit of the embedding provider is open")


@pytest.mark.parametrize("fault", [*WHOLE, "hang", "error", "malformed"])
async def test_memories_are_kept_found_and_embedded_later_in_order_once(platform: Platform, fault: str) -> None:
    keeper = await Keeper(platform).warmed()
    await keeper.embedded([LOCAL, REMOTE])
    await breaks(platform, fault)
    await opened(keeper)

    notes = [f"Note {number}: the spare key lies under flowerpot {number}." for number in range(NOTES)]
    for note in notes:
        kept = await keeper.keep(note)
        assert kept.status == 201, kept
        assert kept.seconds < DEADLINE
    rows = await keeper.stored()
    assert [row["text"] for row in rows][1:] == notes

    async def found() -> bool:
        answer = await keeper.find("how can I get into the house without my own")
        assert fallbacks(answer) == {"local-embedding"}, answer
        assert answer.body["search"] == "semantic"
        return set(notes) <= set(texts(answer))

    await eventually(found, "all are found by the local model", LOADED)
    activated = (await metrics(platform, AI_CORE)).total("fallback_activations_total", fallback="local-embedding")
    assert activated > 0

    await mends(platform, fault)
    await platform.in_state(EMBEDDINGS, "closed", at=(AI_CORE,), limit=RECOVERY)
    rows = await keeper.embedded([LOCAL, REMOTE])
    assert [row["text"] for row in rows][1:] == notes
    assert {row["embedding_model"] for row in rows} == {REMOTE}
    answer = await keeper.find(notes[3])
    assert fallbacks(answer) == set(), answer
    assert texts(answer)[0] == notes[3]


async def test_a_busy_provider_opens_no_circuit(platform: Platform) -> None:
    keeper = await Keeper(platform).warmed()
    await keeper.embedded([LOCAL, REMOTE])
    simulator = Simulator(platform)
    await simulator.order(TARGET, "rate_limit", retry_after=1)
    for _ in range(2 * FAILURES):
        answer = await keeper.find("where is my bike")
        assert (answer.status, answer.body["search"]) == (200, "semantic")
        assert fallbacks(answer) == {"local-embedding"}
    assert await platform.circuit(EMBEDDINGS, AI_CORE) == "closed"
    await simulator.clear()

    async def live() -> bool:
        return fallbacks(await keeper.find("where is my bike")) == set()

    await eventually(live, "the provider serves again", RECOVERY)


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_memories_accepted_without_the_database_are_all_there_embedded_in_order_once(
    platform: Platform, fault: str
) -> None:
    keeper = await Keeper(platform).warmed()
    assert len(texts(await keeper.listed())) == 1
    await getattr(platform.stack, fault)("postgres")
    notes = [f"Queued note {number}" for number in range(NOTES)]
    keys = [f"key-{fault}-{number}" for number in range(NOTES)]
    for note, key in zip(notes, keys, strict=True):
        kept = await keeper.keep(note, **{"Idempotency-Key": key, "Prefer": "respond-async"})
        assert (kept.status, kept.body["queued"]) == (202, True), kept
        assert kept.seconds < DEADLINE
    again = await keeper.keep(notes[0], **{"Idempotency-Key": keys[0], "Prefer": "respond-async"})
    assert again.status == 202, again

    shown = await keeper.listed()
    assert (shown.body["stale"], shown.body["pending"]) == (True, True), shown
    assert texts(shown)[:NOTES] == notes[::-1]
    found = await keeper.find("queued note")
    assert (found.body["search"], found.body["stale"]) == ("full-text", True), found
    assert set(notes) <= set(texts(found))

    await platform.stack.heal("postgres")
    await platform.in_state("postgres", "closed", at=(AI_CORE,), limit=RECOVERY)
    await drained(platform)
    rows = await keeper.embedded([LOCAL, REMOTE])
    assert [row["text"] for row in rows][1:] == notes
    repeated = await keeper.keep(notes[0], **{"Idempotency-Key": keys[0]})
    assert repeated.status == 201, repeated
    assert len(await keeper.stored()) == NOTES + 1
    answer = await keeper.listed()
    assert "stale" not in answer.body
    assert texts(answer)[:NOTES] == notes[::-1]


async def drained(platform: Platform) -> None:
    async def empty() -> bool:
        return await platform.depth(AI_CORE) == 0

    await eventually(empty, "AI Core's queue is empty")
