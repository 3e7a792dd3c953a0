"""Chat and what is remembered of it, on real servers and a chain that does as it is told (rows A1 and A2)."""

from __future__ import annotations

import asyncio
import uuid

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

import ai_core.outbound.postgres as postgres_module
from ai_core.degradation import UNSAVED_HISTORY
from ai_core.model import HISTORY_TURNS, AgentUnknown, ConversationUnknown, Invalid, Turn
from ai_core.ports import ProviderFailed
from ai_core.query import Completion, Query
from ai_core.usecases.chain import AllProvidersGone, StreamBroken
from ai_core.usecases.chat import Chat
from resilience import SYSTEM_CLOCK, Served
from services.ai_core.tests.agents_world import AgentsWorld, somebody
from services.ai_core.tests.chain_fakes import ROLE, WHOLE, chunk, completion

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def world(engine: AsyncEngine, redis_client: Redis) -> AgentsWorld:
    return AgentsWorld(engine, redis_client)


class Asked:
    """A chain that answers with what it was asked last, when it may; remembers every query."""

    def __init__(self) -> None:
        self.queries: list[Query] = []
        self.held: dict[str, asyncio.Event] = {}

    async def complete(self, asked: Query) -> Served[Completion]:
        self.queries.append(asked)
        text = asked.messages[-1]["content"]
        if event := self.held.get(text):
            await event.wait()
        return Served(completion("gpt-4", text=f"re: {text}"))

    async def stream(self, asked: Query) -> Served[object]:
        raise NotImplementedError


async def history(world: AgentsWorld, owner: str, agent_id: str, conversation: str) -> list[str]:
    return [turn.content for turn in (await world.conversations.get(owner, agent_id, conversation)).value.turns]


async def test_a_chat_sends_prompt_history_and_message_of_its_owner(world: AgentsWorld) -> None:
    owner, chain = somebody(), Asked()
    chat = Chat(world.conversations, chain, SYSTEM_CLOCK)  # type: ignore[arg-type]
    agent = await world.agent(owner, model="gpt-3.5-turbo")
    first = (await chat.reply(owner, agent.id, "one")).value
    second = (await chat.reply(owner, agent.id, "two", first.conversation_id)).value
    assert second.conversation_id == first.conversation_id
    assert (second.reply, second.provider, second.model, second.finish_reason) == ("re: two", "openai", "gpt-4", "stop")
    assert (second.prompt_tokens, second.completion_tokens) == (10, 5)
    asked = chain.queries[1]
    assert (asked.tenant, asked.agent, asked.prefer) == (owner, agent.id, "gpt-3.5-turbo")
    said = [(message["role"], message["content"]) for message in asked.messages]
    assert said == [("system", "Be brief."), ("user", "one"), ("assistant", "re: one"), ("user", "two")]


async def test_exchanges_that_overlap_are_kept_in_the_order_in_which_they_began(world: AgentsWorld) -> None:
    owner, chain, conversation = somebody(), Asked(), str(uuid.uuid4())
    chat = Chat(world.conversations, chain, SYSTEM_CLOCK)  # type: ignore[arg-type]
    agent = await world.agent(owner)
    texts = [f"message {number}" for number in range(6)]
    tasks = []
    for text in texts:
        chain.held[text] = asyncio.Event()
        tasks.append(asyncio.create_task(chat.reply(owner, agent.id, text, conversation)))
        while not any(asked.messages[-1]["content"] == text for asked in chain.queries):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    for text, task in reversed(list(zip(texts, tasks, strict=True))):
        chain.held[text].set()
        await task
    kept = [part for text in texts for part in (text, f"re: {text}")]
    assert await history(world, owner, agent.id, conversation) == kept


async def test_exchanges_that_are_written_at_once_are_all_kept(world: AgentsWorld) -> None:
    owner, conversation = somebody(), str(uuid.uuid4())
    agent = await world.agent(owner)
    await asyncio.gather(
        *(world.conversations.remember(agent, conversation, f"q{number}", f"a{number}", number) for number in range(5))
    )
    assert await history(world, owner, agent.id, conversation) == [
        part for number in range(5) for part in (f"q{number}", f"a{number}")
    ]


async def test_a_conversation_keeps_its_newest_turns(world: AgentsWorld) -> None:
    owner, conversation = somebody(), str(uuid.uuid4())
    agent = await world.agent(owner)
    for number in range(15):
        await world.conversations.remember(agent, conversation, f"q{number}", f"a{number}", 1000.0 + number)
    kept = (await world.conversations.get(owner, agent.id, conversation)).value.turns
    assert len(kept) == HISTORY_TURNS
    assert (kept[0], kept[-1]) == (Turn("user", "q5"), Turn("assistant", "a14"))


async def test_conversations_are_listed_the_one_used_last_first_and_forgotten(world: AgentsWorld) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    ids = [str(uuid.uuid4()) for _ in range(5)]
    for number, one in enumerate(ids):
        await world.conversations.remember(agent, one, "q", "a", 1_700_000_000.0 + number)
    await world.conversations.remember(agent, ids[0], "q", "a", 1_700_000_100.0)
    order = [ids[0], *ids[:0:-1]]
    assert await listed(world, owner, agent.id) == order
    await world.conversations.delete(owner, agent.id, ids[3])
    with pytest.raises(ConversationUnknown):
        await world.conversations.get(owner, agent.id, ids[3])
    with pytest.raises(ConversationUnknown):
        await world.conversations.delete(owner, agent.id, ids[3])
    order.remove(ids[3])
    assert await listed(world, owner, agent.id) == order
    world.database_goes()
    assert await listed(world, owner, agent.id) == order
    with pytest.raises(ConversationUnknown):
        await world.conversations.get(owner, agent.id, ids[3])


async def listed(world: AgentsWorld, owner: str, agent_id: str) -> list[str]:
    seen, cursor = [], ""
    while True:
        page = (await world.conversations.page(owner, agent_id, 2, cursor)).value
        seen += [one.id for one in page.items]
        if not (cursor := page.next_cursor):
            return seen


async def test_an_agent_has_a_bounded_number_of_conversations(
    world: AgentsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "CONVERSATIONS_PER_AGENT", 2)
    owner = somebody()
    agent = await world.agent(owner)
    ids = [str(uuid.uuid4()) for _ in range(4)]
    for number, one in enumerate(ids):
        await world.conversations.remember(agent, one, "q", "a", 1_700_000_000.0 + number)
    assert [one.id for one in await world.store.conversations(owner, agent.id, 10, None)] == ids[:1:-1]


async def test_without_the_database_a_chat_goes_on_and_is_remembered_later(world: AgentsWorld) -> None:
    owner, chain = somebody(), Asked()
    chat = Chat(world.conversations, chain, SYSTEM_CLOCK)  # type: ignore[arg-type]
    agent = await world.agent(owner)
    conversation = (await chat.reply(owner, agent.id, "before")).value.conversation_id
    assert await listed(world, owner, agent.id) == [conversation]
    world.database_goes()
    during = await chat.reply(owner, agent.id, "during", conversation)
    assert [one.fallback for one in during.degradations] == ["redis-cache", "redis-queue"]
    assert during.as_of is None
    again = await chat.reply(owner, agent.id, "again", conversation)
    assert not again.value.cached
    said = [message["content"] for message in chain.queries[-1].messages]
    assert said == ["Be brief.", "before", "re: before", "during", "re: during", "again"]
    shown = await world.conversations.get(owner, agent.id, conversation)
    assert (shown.pending, len(shown.value.turns)) == (True, 6)
    new = (await chat.reply(owner, agent.id, "elsewhere")).value.conversation_id
    assert await listed(world, owner, agent.id) == [new, conversation]
    await world.database_comes()
    live = await world.conversations.get(owner, agent.id, conversation)
    assert (live.pending, live.degraded, live.value) == (False, False, shown.value)
    assert await listed(world, owner, agent.id) == [new, conversation]
    await chat.reply(owner, agent.id, "after", conversation)
    texts = await history(world, owner, agent.id, conversation)
    assert texts[::2] == ["before", "during", "again", "after"]


async def test_without_database_and_redis_the_answer_is_delivered_unsaved(world: AgentsWorld) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    world.database_goes()
    world.redis_is_away = True
    served = await world.chat.reply(owner, agent.id, "hello")
    assert served.value.reply == "answer of gpt-4"
    assert [one.fallback for one in served.degradations] == ["memory-cache", UNSAVED_HISTORY]
    world.redis_is_away = False
    await world.database_comes()
    again = await world.chat.reply(owner, agent.id, "hello", served.value.conversation_id)
    assert not again.degraded
    assert await history(world, owner, agent.id, served.value.conversation_id) == ["hello", "answer of gpt-4"]


async def test_a_stream_is_remembered_at_its_end(world: AgentsWorld) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    served = await world.chat.stream(owner, agent.id, "hello")
    async with served.value as stream:
        assert (stream.reply.provider, stream.reply.model, stream.reply.reply) == ("openai", "gpt-4", "")
        conversation = stream.reply.conversation_id
        assert "".join([text async for text in stream]) == "Good day"
        assert (stream.reply.finish_reason, stream.reply.prompt_tokens, stream.degradations) == ("stop", 7, ())
    assert await history(world, owner, agent.id, conversation) == ["hello", "Good day"]
    world.database_goes()
    served = await world.chat.stream(owner, agent.id, "again", conversation)
    async with served.value as stream:
        assert "".join([text async for text in stream]) == "Good day"
        assert [one.fallback for one in stream.degradations] == ["redis-queue"]
    await world.database_comes()
    assert await history(world, owner, agent.id, conversation) == ["hello", "Good day", "again", "Good day"]


async def test_a_broken_or_abandoned_stream_is_not_remembered(world: AgentsWorld) -> None:
    owner, conversation = somebody(), str(uuid.uuid4())
    agent = await world.agent(owner)
    world.chain.streamed(0, [ROLE], [chunk("Good ")], ProviderFailed("cut"))
    served = await world.chat.stream(owner, agent.id, "one", conversation)
    with pytest.raises(StreamBroken) as raised:
        async with served.value as stream:
            _ = [text async for text in stream]
    assert raised.value.sent == 5
    world.chain.streamed(0, [ROLE], [chunk("Good ")], "wait", *WHOLE)
    served = await world.chat.stream(owner, agent.id, "two", conversation)
    async with served.value as stream:
        assert await anext(aiter(stream)) == "Good "
    with pytest.raises(ConversationUnknown):
        await world.conversations.get(owner, agent.id, conversation)


async def test_who_is_answered_by_nobody_is_not_remembered(world: AgentsWorld) -> None:
    owner, conversation = somebody(), str(uuid.uuid4())
    agent = await world.agent(owner)
    for place in range(3):
        world.chain.told(place, ProviderFailed("status 500"))
    with pytest.raises(AllProvidersGone):
        await world.chat.reply(owner, agent.id, "hello", conversation)
    with pytest.raises(ConversationUnknown):
        await world.conversations.get(owner, agent.id, conversation)


@pytest.mark.parametrize("conversation", ["x", "0" * 36, "../../etc"])
async def test_a_conversations_id_is_a_uuid(world: AgentsWorld, conversation: str) -> None:
    owner = somebody()
    agent = await world.agent(owner)
    with pytest.raises(Invalid):
        await world.chat.reply(owner, agent.id, "hello", conversation)
    with pytest.raises(ConversationUnknown):
        await world.conversations.get(owner, agent.id, conversation)


async def test_conversations_go_with_their_agent(world: AgentsWorld) -> None:
    owner, conversation = somebody(), str(uuid.uuid4())
    agent = await world.agent(owner)
    await world.conversations.remember(agent, conversation, "q", "a", 1.0)
    await world.conversations.page(owner, agent.id)
    await world.copies.flush_all()
    await world.agents.delete(owner, agent.id)
    assert (await world.conversations.remember(agent, conversation, "q", "a", 2.0)).value is None
    for gone in (False, True):
        if gone:
            world.database_goes()
        for attempt in (
            world.conversations.get(owner, agent.id, conversation),
            world.conversations.page(owner, agent.id),
        ):
            with pytest.raises(AgentUnknown):
                await attempt
