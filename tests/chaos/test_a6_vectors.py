"""Row A6, ai_core.vectors: without pgvector memories are searched by their words, and by meaning again afterwards."""

from __future__ import annotations

import pytest

from tests.harness.memories import AI_CORE, LOCAL, Keeper, sql, texts
from tests.harness.platform import Answer, Platform, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.row("A6"), pytest.mark.stack]

VECTORS = "vectors"
DEADLINE = 2.4  # s
RECOVERY = 5.0  # s
KEY = "The spare key lies under the third flowerpot."
ASKED = "how do I get into the house"


async def uninstall(platform: Platform) -> None:
    """The extension is dropped, and cannot be created again."""
    await sql(platform, "ALTER SYSTEM SET extension_control_path = '/nowhere'")
    await sql(platform, "SELECT pg_reload_conf()")
    await sql(platform, "DROP EXTENSION vector CASCADE")


async def install(platform: Platform) -> None:
    await sql(platform, "ALTER SYSTEM RESET extension_control_path")
    await sql(platform, "SELECT pg_reload_conf()")


def by_words(answer: Answer) -> bool:
    """Whether it says that words were searched; it has to say so in both places, or in none."""
    assert (answer.status, answer.seconds < DEADLINE) == (200, True), answer
    marked = answer.headers.get("x-fallback-used") == "full-text"
    assert marked == (answer.body["search"] == "full-text"), answer
    return marked


async def test_words_are_searched_while_the_extension_is_gone_and_nothing_is_lost(platform: Platform) -> None:
    keeper = await Keeper(platform).warmed()
    before = await keeper.keep(KEY)
    assert before.status == 201
    await keeper.embedded([LOCAL])
    answer = await keeper.find(ASKED)
    assert not by_words(answer)
    assert texts(answer)[0] == KEY

    await uninstall(platform)
    try:

        async def is_open() -> bool:
            assert by_words(await keeper.find("third flowerpot"))
            return await platform.circuit(VECTORS, AI_CORE) == "open"

        await eventually(is_open, "the circuit of the vectors is open")
        answer = await keeper.find("third flowerpot")
        assert by_words(answer)
        assert answer.headers["x-circuit-state"] == "open"
        assert texts(answer) == [KEY]
        assert await platform.circuit("postgres", AI_CORE) == "closed"
        kept = await keeper.keep("The umbrella stands in the hall.")
        assert kept.status == 201, kept
        assert "x-degraded-mode" not in kept.headers
        await keeper.embedded([LOCAL])
    finally:
        await install(platform)

    await platform.in_state(VECTORS, "closed", at=(AI_CORE,), limit=RECOVERY)
    answer = await keeper.find("what protects me from the rain")
    assert not by_words(answer)
    assert texts(answer)[0] == "The umbrella stands in the hall."
    assert texts(await keeper.find(ASKED))[0] == KEY

    async def indexed() -> bool:
        rows = await sql(platform, "SELECT 1 FROM pg_indexes WHERE indexname LIKE 'memory_vectors_near_%'")
        return bool(rows)

    await eventually(indexed, "the index is built again")


async def test_an_extension_that_was_only_dropped_is_created_again_by_the_service(platform: Platform) -> None:
    keeper = await Keeper(platform).warmed()
    await sql(platform, "DROP EXTENSION vector CASCADE")

    async def by_meaning() -> bool:
        return not by_words(await keeper.find("where is my bike"))

    await eventually(by_meaning, "search by meaning works again", 10)
    assert texts(await keeper.find("where is my bike")) == ["The bicycle is in the cellar."]


@pytest.mark.parametrize("fault", ["kill", "delay"])
async def test_without_the_database_it_is_row_a1(platform: Platform, fault: str) -> None:
    """What is gone then is the database: the copy is searched, and row A6 does not speak for it."""
    keeper = await Keeper(platform).warmed()
    assert len(texts(await keeper.listed())) == 1
    await getattr(platform.stack, fault)("postgres")
    for _ in range(3):
        answer = await keeper.find("bicycle cellar")
        assert answer.seconds < DEADLINE, answer
        assert (answer.status, answer.body["search"], answer.body["stale"]) == (200, "full-text", True), answer
        assert answer.headers["x-fallback-used"] == "redis-cache"
    assert await platform.circuit(VECTORS, AI_CORE) == "closed"
    await platform.stack.heal("postgres")
    await platform.in_state("postgres", "closed", at=(AI_CORE,), limit=RECOVERY)
    assert not by_words(await keeper.find("where is my bike"))
