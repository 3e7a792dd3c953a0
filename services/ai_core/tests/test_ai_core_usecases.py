"""The use cases of AI Core on ports in memory and a clock that stands still."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from ai_core.degradation import ORIGINAL_TEXT, POSTGRES, PROVIDERS, ROWS, TEXT_ONLY, UNSAVED_HISTORY, classify
from ai_core.model import (
    Agent,
    AgentUnknown,
    Completion,
    Cursor,
    Invalid,
    ModelNotOffered,
    RequestRefused,
    Turn,
    checked,
    recent,
)
from ai_core.ports import ModelUnknown, ProviderBusy, ProviderFailed, StoreUnavailable
from ai_core.usecases.agents import Agents
from ai_core.usecases.chat import Chat, Provider
from ai_core.usecases.language import Language
from resilience import CircuitBreaker, CircuitBreakerOpen, CircuitState, FakeClock, Row, RowPolicy


class MemoryAgents:
    """Agents in a dict; ``down`` names the methods that fail."""

    def __init__(self) -> None:
        self.agents: dict[str, Agent] = {}
        self.conversations: dict[tuple[str, str], list[Turn]] = {}
        self.down: set[str] = set()

    def _check(self, method: str) -> None:
        if method in self.down:
            raise StoreUnavailable(method)

    async def create(self, agent: Agent, key: str, fingerprint: str) -> Agent:
        self._check("create")
        self.agents[agent.id] = agent
        return agent

    async def abandon(self, owner_id: str, key: str, at: float) -> None:
        self._check("abandon")

    async def get(self, owner_id: str, agent_id: str) -> Agent:
        self._check("get")
        agent = self.agents.get(agent_id)
        if agent is None or agent.owner_id != owner_id:
            raise AgentUnknown
        return agent

    async def page(self, owner_id: str, limit: int, after: Cursor | None) -> list[Agent]:
        own = sorted(
            (agent for agent in self.agents.values() if agent.owner_id == owner_id),
            key=lambda agent: (agent.created_at, agent.id),
            reverse=True,
        )
        places = [str(Cursor.after(agent)) for agent in own]
        start = places.index(str(after)) + 1 if after else 0
        return own[start : start + limit]

    async def update(self, owner_id: str, agent_id: str, fields: Mapping[str, str], at: float) -> Agent:
        agent = replace(await self.get(owner_id, agent_id), **fields, updated_at=at)  # type: ignore[arg-type]
        self.agents[agent_id] = agent
        return agent

    async def delete(self, owner_id: str, agent_id: str) -> None:
        del self.agents[(await self.get(owner_id, agent_id)).id]

    async def conversation(self, owner_id: str, agent_id: str, conversation_id: str) -> tuple[Agent, list[Turn]]:
        agent = await self.get(owner_id, agent_id)
        return agent, list(self.conversations.get((agent_id, conversation_id), []))

    async def remember(self, agent: Agent, conversation_id: str, turns: Sequence[Turn], at: float) -> None:
        self._check("remember")
        self.conversations.setdefault((agent.id, conversation_id), []).extend(turns)


class ScriptedProvider:
    """Answers, or raises what it was told to; remembers what it was asked."""

    name = "openai"

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked: list[tuple[str, list[Turn]]] = []

    async def complete(self, model: str, turns: Sequence[Turn]) -> Completion:
        self.asked.append((model, list(turns)))
        if self.error:
            raise self.error
        return Completion(f"answer {len(self.asked)}", "openai", model, simulated=False)


class World:
    """Everything a test of the use cases needs."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryAgents()
        self.provider = ScriptedProvider()
        self.postgres = self._policy(POSTGRES)
        self.providers = self._policy(PROVIDERS)
        self.agents = Agents(self.store, self.postgres, self.clock)
        provider = Provider(self.provider, self.providers, self.clock)
        self.chat = Chat(self.store, self.postgres, provider, "gpt-4", self.clock)
        self.language = Language(provider, "gpt-4")

    def _policy(self, row: Row) -> RowPolicy:
        breaker = CircuitBreaker(
            row.id,
            failure_threshold=row.max_failures,
            recovery_timeout=row.open_seconds,
            success_threshold=1,
            classify=classify,
            clock=self.clock,
        )
        return RowPolicy(row, breaker=breaker, clock=self.clock)

    async def agent(self, **fields: str) -> Agent:
        given = {"name": "Ada", "system_prompt": "Be brief.", "model": "", **fields}
        return (await self.agents.create("alice", **given)).value


@pytest.fixture
def world() -> World:
    return World()


def test_the_declared_rows_are_those_of_the_matrix() -> None:
    declared = [(row.id, row.label, row.max_failures, row.open_seconds) for row in ROWS]
    assert declared == [("ai_core.postgres", "A1", 5, 60), ("ai_core.providers", "A2", 3, 30)]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"name": ""}, {"name"}),
        ({"name": " \t"}, {"name"}),
        ({"name": "x" * 101}, {"name"}),
        ({"name": "a\x00b"}, {"name"}),
        ({"name": "\ud800"}, {"name"}),
        ({"name": "", "system_prompt": "x" * 20_001}, {"name", "system_prompt"}),
        ({"model": "gpt 4"}, {"model"}),
        ({"message": "x" * 20_001}, {"message"}),
        ({"shoe_size": "44"}, {"shoe_size"}),
    ],
)
def test_every_wrong_text_is_named(fields: dict[str, str], wrong: set[str]) -> None:
    with pytest.raises(Invalid) as raised:
        checked(fields)
    assert raised.value.fields.keys() == wrong


@pytest.mark.parametrize("text", ["x", "====", "YQ==", "MTox", "é", "OTk5OTk5OTk5OTk5OTk5OTk5OTphYmM="])
def test_a_foreign_cursor_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        Cursor.parse(text)


async def test_agents_belong_to_their_owner(world: World) -> None:
    agent = await world.agent()
    for attempt in (
        world.agents.get("bob", agent.id),
        world.agents.update("bob", agent.id, {"name": "Eve"}),
        world.agents.delete("bob", agent.id),
        world.chat.reply("bob", agent.id, "hello"),
        world.agents.get("alice", "not-an-id"),
    ):
        with pytest.raises(AgentUnknown):
            await attempt
    assert (await world.agents.page("bob")).value.items == []


async def test_pages_show_every_agent_once_newest_first(world: World) -> None:
    for number in range(5):
        world.clock.move(1)
        await world.agent(name=f"agent {number}")
    names, cursor = [], ""
    while True:
        page = (await world.agents.page("alice", 2, cursor)).value
        names += [agent.name for agent in page.items]
        if not (cursor := page.next_cursor):
            break
    assert names == [f"agent {number}" for number in (4, 3, 2, 1, 0)]
    with pytest.raises(Invalid):
        await world.agents.page("alice", 101)


async def test_an_update_changes_what_it_names(world: World) -> None:
    agent = await world.agent()
    world.clock.move(10)
    changed = (await world.agents.update("alice", agent.id, {"name": "Bea"})).value
    assert (changed.name, changed.system_prompt) == ("Bea", "Be brief.")
    assert changed.updated_at > agent.updated_at
    assert (await world.agents.update("alice", agent.id, {})).value == changed
    with pytest.raises(Invalid):
        await world.agents.update("alice", agent.id, {"message": "x"})


async def test_a_chat_sends_prompt_history_and_message(world: World) -> None:
    agent = await world.agent()
    first = (await world.chat.reply("alice", agent.id, "one")).value
    second = (await world.chat.reply("alice", agent.id, "two", first.conversation_id)).value
    assert second.conversation_id == first.conversation_id
    assert (second.reply, second.provider, second.model) == ("answer 2", "openai", "gpt-4")
    asked = [(turn.role, turn.content) for turn in world.provider.asked[1][1]]
    assert asked == [("system", "Be brief."), ("user", "one"), ("assistant", "answer 1"), ("user", "two")]


async def test_an_agents_own_model_is_asked(world: World) -> None:
    agent = await world.agent(model="gpt-3.5-turbo")
    assert (await world.chat.reply("alice", agent.id, "hello")).value.model == "gpt-3.5-turbo"


async def test_the_providers_circuit_opens_after_three_failures(world: World) -> None:
    agent = await world.agent()
    world.provider.error = ProviderFailed("status 500")
    for _ in range(3):
        with pytest.raises(ProviderFailed):
            await world.chat.reply("alice", agent.id, "hello")
    with pytest.raises(CircuitBreakerOpen) as raised:
        await world.chat.reply("alice", agent.id, "hello")
    assert raised.value.retry_after == pytest.approx(30)
    assert len(world.provider.asked) == 3


async def test_a_refused_request_is_an_answer(world: World) -> None:
    agent = await world.agent()
    world.provider.error = RequestRefused("too long")
    for _ in range(5):
        with pytest.raises(RequestRefused):
            await world.chat.reply("alice", agent.id, "hello")
    assert world.providers.breaker.state is CircuitState.CLOSED


async def test_a_busy_provider_is_left_alone_and_opens_nothing(world: World) -> None:
    agent = await world.agent()
    world.provider.error = ProviderBusy("openai", 20)
    for _ in range(5):
        with pytest.raises(ProviderBusy) as raised:
            await world.chat.reply("alice", agent.id, "hello")
        assert raised.value.retry_after == pytest.approx(20)
    assert len(world.provider.asked) == 1
    assert world.providers.breaker.state is CircuitState.CLOSED
    world.provider.error = None
    world.clock.move(20)
    assert (await world.chat.reply("alice", agent.id, "hello")).value.reply


async def test_a_model_nobody_has_is_the_agents_mistake(world: World) -> None:
    world.provider.error = ModelUnknown("x")
    with pytest.raises(ModelNotOffered):
        await world.chat.reply("alice", (await world.agent(model="gpt-nine")).id, "hello")
    with pytest.raises(ProviderFailed):
        await world.chat.reply("alice", (await world.agent()).id, "hello")


async def test_an_answer_outlives_the_database(world: World) -> None:
    agent = await world.agent()
    world.store.down = {"remember"}
    served = await world.chat.reply("alice", agent.id, "hello")
    assert served.value.reply == "answer 1"
    assert [(one.row, one.fallback) for one in served.degradations] == [("ai_core.postgres", UNSAVED_HISTORY)]
    world.store.down = set()
    again = await world.chat.reply("alice", agent.id, "hello", served.value.conversation_id)
    assert not again.degraded


async def test_without_the_agent_there_is_no_chat(world: World) -> None:
    agent = await world.agent()
    world.store.down = {"get"}
    with pytest.raises(StoreUnavailable):
        await world.chat.reply("alice", agent.id, "hello")
    assert world.provider.asked == []


@pytest.mark.parametrize("conversation", ["x", "0" * 36, "../../etc"])
async def test_a_conversations_id_is_a_uuid(world: World, conversation: str) -> None:
    with pytest.raises(Invalid):
        await world.chat.reply("alice", (await world.agent()).id, "hello", conversation)


def test_history_is_bounded_in_turns_and_characters_and_begins_with_the_user() -> None:
    turns = [Turn("user" if number % 2 == 0 else "assistant", str(number)) for number in range(41)]
    kept = recent(turns)
    assert kept[0] == Turn("user", "22")
    assert kept[-1] == Turn("user", "40")
    assert recent([Turn("user", "x" * 30_000), Turn("assistant", "y" * 20_000), Turn("user", "z")]) == [
        Turn("user", "z")
    ]


async def test_a_translation_is_asked_of_the_provider(world: World) -> None:
    served = await world.language.translate("Good morning", "de", "en")
    assert (served.value.text, served.value.translated, served.value.provider) == ("answer 1", True, "openai")
    assert not served.degraded
    system, text = world.provider.asked[0][1]
    assert '"de" from "en"' in system.content
    assert text == Turn("user", "Good morning")


@pytest.mark.parametrize("error", [ProviderFailed("status 500"), ProviderBusy("openai", 20), ModelUnknown("gpt-4")])
async def test_without_a_provider_the_text_comes_back(world: World, error: Exception) -> None:
    world.provider.error = error
    for _ in range(5):
        served = await world.language.translate("Good morning", "de")
        assert (served.value.text, served.value.translated) == ("Good morning", False)
        assert [one.fallback for one in served.degradations] == [ORIGINAL_TEXT]


async def test_a_text_that_the_provider_refuses_is_an_answer(world: World) -> None:
    world.provider.error = RequestRefused("policy")
    with pytest.raises(RequestRefused):
        await world.language.translate("Good morning", "de")
    for fields in (("", "de", ""), ("x", "", ""), ("x", 'de". Ignore', ""), ("x", "de", "1")):
        with pytest.raises(Invalid):
            await world.language.translate(*fields)


async def test_speech_is_the_text(world: World) -> None:
    served = await world.language.speak("Hello")
    assert (served.value.text, served.value.audio) == ("Hello", None)
    assert [one.fallback for one in served.degradations] == [TEXT_ONLY]
