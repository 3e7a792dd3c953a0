"""Which model embeds what, the worker that does it in the background, and how memories are searched then."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_core.degradation import (
    EMBEDDINGS,
    FULL_TEXT,
    LOCAL_EMBEDDING,
    POSTGRES,
    VECTORS,
    classify,
    classify_provider,
    classify_vectors,
)
from ai_core.model import Cursor, Invalid, Match, Memory, ModelNotOffered, Page, RequestRefused, TooLong
from ai_core.ports import (
    Due,
    EmbeddingBusy,
    ModelUnknown,
    ProviderBusy,
    ProviderFailed,
    StoreUnavailable,
    Vectors,
    VectorsGone,
)
from ai_core.usecases import embedding_worker
from ai_core.usecases.embedding_worker import ATTEMPTS, BATCH, BEGINNING, EmbeddingWorker
from ai_core.usecases.embeddings import Embeddings
from ai_core.usecases.memories import Memories
from ai_core.usecases.memory_writes import CREATE, DELETE, creation, entity_of, memories_changed, vectors_of
from ai_core.usecases.words import holding
from resilience import (
    CircuitBreaker,
    CircuitState,
    Classify,
    FakeClock,
    Missing,
    Operation,
    Row,
    RowPolicy,
    Rung,
    Served,
)
from resilience.mirror import Pending

OWNER = "alice"


class Model:
    """A model that makes vectors of one number, or fails as told; it notes what it was asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dimensions: int | None = 1
        self.failure: Exception | None = None
        self.poison: set[str] = set()
        self.longest = 100_000
        self.asked: list[str] = []
        self.hangs = False
        self.loads = 0

    async def embed(self, texts: Sequence[str], limit: float | None = None) -> Vectors:
        self.asked += texts
        if self.hangs:
            await asyncio.Event().wait()
        if self.failure:
            raise self.failure
        if max(map(len, texts)) > self.longest:
            raise TooLong("too long")
        if self.poison & set(texts):
            raise RequestRefused("no")
        return Vectors([[float(len(text))] for text in texts], self.name, len(texts))

    async def soon(self, text: str) -> Vectors | None:
        return None if self.failure else await self.embed([text])

    async def load(self) -> None:
        self.loads += 1


def policy_of(row: Row, classify: Classify, clock: FakeClock) -> RowPolicy:
    breaker = CircuitBreaker(
        row.id, failure_threshold=row.max_failures, recovery_timeout=row.open_seconds, classify=classify, clock=clock
    )
    return RowPolicy(row, breaker=breaker, clock=clock)


class Work:
    """What waits, in memory."""

    def __init__(self, clock: FakeClock, texts: Sequence[str] = ()) -> None:
        self.clock = clock
        self.texts = {str(number): text for number, text in enumerate(texts)}
        self.due: dict[tuple[str, str], tuple[float, int]] = {}
        self.kept: list[tuple[str, str]] = []
        self.failure: Exception | None = None
        self.done = asyncio.Event()

    def line_up(self, *models: str) -> None:
        self.due |= {(model, one): (0.0, 0) for model in models for one in self.texts}

    async def claim(self, model: str, limit: int, lease: float) -> list[Due]:
        self._check()
        now = self.clock.monotonic()
        found = [key for key, (at, _) in self.due.items() if key[0] == model and at <= now][:limit]
        for key in found:
            self.due[key] = (now + lease, self.due[key][1] + 1)
        return [Due(one, self.texts[one], self.due[model, one][1]) for _, one in found]

    async def keep(self, memory_ids: Sequence[str], vectors: Vectors) -> None:
        self._check()
        for one in memory_ids:
            self.kept.append((vectors.model, one))
            del self.due[vectors.model, one]
        if not self.due:
            self.done.set()

    async def postpone(self, memory_ids: Sequence[str], model: str, seconds: float | None, *, counted: bool) -> None:
        self._check()
        at = float("inf") if seconds is None else self.clock.monotonic() + seconds
        for one in memory_ids:
            self.due[model, one] = (at, self.due[model, one][1] - (not counted))

    async def any(self) -> bool:
        self._check()
        return bool(self.texts)

    async def add_missing(self, model: str, after: str, limit: int) -> str:
        self._check()
        for one in self.texts:
            if (model, one) not in self.kept:
                self.due.setdefault((model, one), (0.0, 0))
        return ""

    def _check(self) -> None:
        if self.failure:
            raise self.failure


class World:
    """Everything around memories, on a clock of its own."""

    def __init__(self, texts: Sequence[str] = (), *, provider: bool = True) -> None:
        self.clock = FakeClock()
        self.local, self.remote = Model("local:small"), Model("openai:large")
        self.provider = policy_of(EMBEDDINGS, classify_provider, self.clock)
        self.postgres = policy_of(POSTGRES, classify, self.clock)
        self.vectors = policy_of(VECTORS, classify_vectors, self.clock)
        named = lambda name: self.remote if name == "large" else _unknown(name)  # noqa: E731
        self.embeddings = Embeddings(self.remote if provider else self.local, self.local, self.provider, named)
        self.work = Work(self.clock, texts)
        self.refused: list[int] = []
        self.worker = EmbeddingWorker(
            self.work, self.embeddings, self.postgres, self.clock, lambda _, attempts: self.refused.append(attempts)
        )
        self.store, self.writes, self.copies = Store(), Writes(), Copies()
        self.memories = Memories(
            self.store,
            self.copies,
            self.writes,  # type: ignore[arg-type]
            self.embeddings,
            self.worker,
            postgres=self.postgres,
            vectors=self.vectors,
            clock=self.clock,
        )

    async def drain(self) -> None:
        while await self.worker.once():
            pass

    async def provider_opens(self) -> None:
        self.remote.failure = ProviderFailed("status 500")
        for _ in range(EMBEDDINGS.max_failures):
            await self.embeddings.made(["x"])
        assert self.provider.breaker.state is CircuitState.OPEN


def _unknown(name: str) -> Model:
    model = Model(f"openai:{name}")
    model.failure = ModelUnknown(name)
    return model


def memory(text: str, at: float = 1.0, owner: str = OWNER) -> Memory:
    return Memory(str(uuid.uuid4()), owner, text, (), "ready", at)


class Store:
    """Answers as told, and notes by what was searched."""

    def __init__(self) -> None:
        self.items = [memory("the weather in spring")]
        self.gone: Exception | None = None
        self.no_vectors: Exception | None = None
        self.late = False
        self.searches: list[str] = []

    async def abandon(self, owner_id: str, key: str, at: float) -> None: ...

    async def page(self, owner_id: str, limit: int, after: Cursor | None) -> list[Memory]:
        self._check()
        return self.items[:limit]

    async def search(self, owner_id: str, query: str, limit: int) -> list[Match]:
        self._check()
        self.searches.append("words")
        return holding(self.items, query)

    async def nearest(self, owner_id: str, query: str, asked: Vectors, limit: int) -> list[Match]:
        self._check()
        if self.no_vectors:
            raise self.no_vectors
        self.searches.append(asked.model)
        return [Match(item, 0.4) for item in self.items][:limit]

    async def behind(self, owner_id: str, model: str) -> bool:
        self._check()
        return self.late

    def _check(self) -> None:
        if self.gone:
            raise self.gone


class Writes:
    """No write is made here; some may wait."""

    def __init__(self) -> None:
        self.waiting: list[Operation] = []

    async def pending(self, entity: str) -> Pending:
        return Pending([one for one in self.waiting if one.entity == entity])

    def create(self, text: str) -> Memory:
        made = memory(text, 5.0)
        self.waiting.append(
            Operation(uuid.uuid4().hex, CREATE, entity_of(OWNER), OWNER, {"at": 5.0, **creation(made, "", None)})
        )
        return made

    def delete(self, memory_id: str) -> None:
        given = {"at": 6.0, "id": memory_id}
        self.waiting.append(Operation(uuid.uuid4().hex, DELETE, entity_of(OWNER), OWNER, given))


class Copies:
    """One copy of each owner's list."""

    def __init__(self) -> None:
        self.kept: dict[str, list[Memory]] = {}

    def keep(self, owner_id: str, items: Sequence[Memory], *, complete: bool, since: float) -> None:
        self.kept[owner_id] = list(items)

    async def change(self, owner_id: str, made: Sequence[Memory], gone: Sequence[str]) -> None: ...

    def rungs(self, owner_id: str, size: int, after: Cursor | None) -> Sequence[Rung[Page[Memory]]]:
        def read(_: BaseException) -> Served[Page[Memory]] | Missing:
            if owner_id not in self.kept:
                return Missing.MISSING
            return Served(Page(self.kept[owner_id][:size]), as_of=1.0)

        return [Rung("redis-cache", read)]


def marks(served: Served[Any]) -> list[tuple[str, str]]:
    return [(one.row, one.fallback) for one in served.degradations]


# -- which model


async def test_the_provider_embeds_and_the_local_model_when_it_is_gone() -> None:
    world = World()
    live = await world.embeddings.of_texts(["abc", "de"])
    assert (live.value.model, live.value.vectors, marks(live)) == ("openai:large", [[3.0], [2.0]], [])
    await world.provider_opens()
    asked = len(world.remote.asked)
    instead = await world.embeddings.of_texts(["abc"])
    assert (instead.value.model, marks(instead)) == ("local:small", [(EMBEDDINGS.id, LOCAL_EMBEDDING)])
    assert len(world.remote.asked) == asked, "an open circuit asks nobody"


async def test_a_provider_that_hangs_is_given_up_in_time() -> None:
    world = World()
    world.remote.hangs = True
    made = asyncio.ensure_future(world.embeddings.made(["abc"], 0.05))
    served = await asyncio.wait_for(made, 5)
    assert served.value.model == "local:small"


async def test_who_names_a_model_gets_that_one_or_an_error() -> None:
    world = World()
    assert (await world.embeddings.of_texts(["a"], "local")).value.model == "local:small"
    for name in ("large", "openai:large"):
        assert (await world.embeddings.of_texts(["a"], name)).value.model == "openai:large"
    with pytest.raises(ModelNotOffered):
        await world.embeddings.of_texts(["a"], "tiny")
    world.remote.failure = ProviderFailed("status 500")
    with pytest.raises(ProviderFailed):
        await world.embeddings.of_texts(["a"], "large")
    assert world.local.asked == ["a"]


async def test_without_a_model_that_can_serve_it_is_an_error() -> None:
    world = World()
    world.remote.failure = world.local.failure = ProviderFailed("nothing there")
    with pytest.raises(ProviderFailed):
        await world.embeddings.of_texts(["a"])
    alone = World(provider=False)
    alone.local.failure = EmbeddingBusy("busy")
    with pytest.raises(ProviderBusy):
        await alone.embeddings.of_texts(["a"])


@pytest.mark.parametrize(
    ("texts", "model"), [([], ""), ([""], ""), (["x"] * 257, ""), (["x" * 30_001], ""), (["x"], "m" * 101)]
)
async def test_what_is_too_much_is_refused(texts: list[str], model: str) -> None:
    with pytest.raises(Invalid):
        await World().embeddings.of_texts(texts, model)


# -- the worker


async def test_everything_is_embedded_by_both_models_oldest_first_once() -> None:
    world = World([f"text {number}" for number in range(2 * BATCH + 3)])
    await world.drain()
    order = [str(number) for number in range(2 * BATCH + 3)]
    for model in ("local:small", "openai:large"):
        assert [one for name, one in world.work.kept if name == model] == order
    assert not world.work.due
    assert world.local.loads == 1
    assert not await world.worker.once()


async def test_a_provider_that_is_gone_holds_up_nothing_and_its_work_waits_uncounted() -> None:
    world = World(["one", "two"])
    world.remote.failure = ProviderFailed("status 500")
    for _ in range(EMBEDDINGS.max_failures):
        await world.worker.once()
        await world.clock.advance(1.0)
    assert [name for name, _ in world.work.kept] == ["local:small"] * 2
    assert world.provider.breaker.state is CircuitState.OPEN
    asked = len(world.remote.asked)
    await world.clock.advance(5.0)
    await world.worker.once()
    assert len(world.remote.asked) == asked
    assert {attempts for _, attempts in world.work.due.values()} == {0}

    world.remote.failure = None
    world.provider.breaker.reset()
    await world.drain()
    assert world.work.kept[2:] == [("openai:large", "0"), ("openai:large", "1")]


async def test_poison_is_set_apart_and_left_alone_in_the_end() -> None:
    world = World(["good", "poison", "also good"])
    world.remote.poison = {"poison"}
    await world.drain()
    assert {one for name, one in world.work.kept if name == "openai:large"} == {"0", "2"}
    for _ in range(2 * ATTEMPTS):
        await world.clock.advance(2.0**ATTEMPTS)
        await world.drain()
    assert world.refused[-1] == ATTEMPTS
    assert world.work.due["openai:large", "1"][0] == float("inf")
    assert world.provider.breaker.state is CircuitState.CLOSED


async def test_of_a_text_that_is_too_long_its_beginning_is_embedded() -> None:
    world = World(["short", "x" * 10_000])
    world.remote.longest = BEGINNING
    await world.drain()
    assert {one for name, one in world.work.kept if name == "openai:large"} == {"0", "1"}
    assert world.remote.asked[-1] == "x" * BEGINNING
    assert world.refused == []


async def test_who_is_asked_to_wait_waits() -> None:
    world = World(["one"])
    world.remote.failure = ProviderBusy("openai", 20.0)
    await world.worker.once()
    world.remote.failure = None
    await world.clock.advance(19.0)
    await world.worker.once()
    assert ("openai:large", "0") not in world.work.kept
    await world.clock.advance(1.5)
    await world.worker.once()
    assert ("openai:large", "0") in world.work.kept


async def test_without_a_database_the_worker_waits_and_goes_on() -> None:
    world = World(["one"])
    world.work.failure = StoreUnavailable("gone")
    assert not await world.worker.once()
    world.work.failure = None
    await world.drain()
    assert len(world.work.kept) == 2


async def test_a_batch_that_the_database_did_not_take_does_not_wait_for_its_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(["one", "two"], provider=False)

    async def gone(*_: object) -> None:
        raise StoreUnavailable("gone")

    with monkeypatch.context() as broken:
        broken.setattr(world.work, "keep", gone)
        await world.worker.once()
    assert world.work.kept == []
    await world.worker.once()
    assert world.work.kept == [("local:small", "0"), ("local:small", "1")]


async def test_without_a_local_model_the_provider_still_embeds() -> None:
    world = World(["one"])
    world.local.failure = ProviderFailed("no local model")
    await world.worker.once()
    assert world.work.kept == [("openai:large", "0")]


async def test_it_works_at_once_when_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_worker, "IDLE", 600.0)
    world = World()
    running = asyncio.ensure_future(world.worker.run())
    await asyncio.sleep(0)
    world.work.texts["0"] = "new"
    world.work.line_up("local:small", "openai:large")
    world.worker.kick()
    async with asyncio.timeout(5):
        await world.work.done.wait()
    assert [model for model, _ in world.work.kept] == ["local:small", "openai:large"]
    running.cancel()


# -- search


async def test_search_by_meaning() -> None:
    world = World()
    found = await world.memories.search(OWNER, "sunshine")
    assert (found.value.search, marks(found), world.store.searches) == ("semantic", [], ["openai:large"])
    assert [match.score for match in found.value.matches] == [0.4]


async def test_while_some_wait_for_the_provider_the_local_model_searches_unmarked() -> None:
    world = World()
    world.store.late = True
    found = await world.memories.search(OWNER, "sunshine")
    assert (found.value.search, marks(found), world.store.searches) == ("semantic", [], ["local:small"])
    assert world.remote.asked == []


async def test_while_the_provider_is_gone_the_local_model_searches_marked() -> None:
    world = World()
    await world.provider_opens()
    for late in (False, True):
        world.store.late = late
        found = await world.memories.search(OWNER, "sunshine")
        assert (found.value.search, marks(found)) == ("semantic", [(EMBEDDINGS.id, LOCAL_EMBEDDING)])
    assert world.store.searches == ["local:small", "local:small"]


@pytest.mark.parametrize("provider", [True, False])
async def test_without_any_model_words_search(provider: bool) -> None:
    world = World(provider=provider)
    world.remote.failure = world.local.failure = ProviderFailed("nothing there")
    found = await world.memories.search(OWNER, "spring weather")
    assert (found.value.search, marks(found)) == ("full-text", [(EMBEDDINGS.id, FULL_TEXT)])
    assert [match.memory for match in found.value.matches] == world.store.items


async def test_a_query_that_the_provider_refuses_is_searched_by_the_local_model() -> None:
    world = World()
    world.remote.poison = {"sunshine"}
    found = await world.memories.search(OWNER, "sunshine")
    assert (found.value.search, marks(found), world.store.searches) == ("semantic", [], ["local:small"])


async def test_a_query_that_is_refused_with_no_local_model_is_searched_by_words() -> None:
    world = World()
    world.remote.poison = {"spring"}
    world.local.failure = ProviderFailed("no local model")
    found = await world.memories.search(OWNER, "spring")
    assert (found.value.search, marks(found)) == ("full-text", [(EMBEDDINGS.id, FULL_TEXT)])


async def test_without_pgvector_words_search_and_the_circuit_opens() -> None:
    world = World()
    world.store.no_vectors = VectorsGone("42704")
    for _ in range(VECTORS.max_failures + 1):
        found = await world.memories.search(OWNER, "spring")
        assert (found.value.search, marks(found)) == ("full-text", [(VECTORS.id, FULL_TEXT)])
    assert world.vectors.breaker.state is CircuitState.OPEN
    assert world.postgres.breaker.state is CircuitState.CLOSED
    assert world.postgres.breaker.snapshot().failures == 0
    world.store.no_vectors = None
    assert (await world.memories.search(OWNER, "spring")).value.search == "full-text"
    world.vectors.breaker.reset()
    assert (await world.memories.search(OWNER, "spring")).value.search == "semantic"


async def test_without_the_database_the_copy_is_searched_by_words_and_is_no_fault_of_pgvectors() -> None:
    world = World()
    world.copies.kept[OWNER] = [memory("my passport is in the drawer"), memory("something else")]
    waiting = world.writes.create("the other passport expired")
    world.store.gone = StoreUnavailable("gone")
    for _ in range(POSTGRES.max_failures + 1):
        found = await world.memories.search(OWNER, "passport")
        texts = {match.memory.text for match in found.value.matches}
        assert texts == {"my passport is in the drawer", waiting.text}
        assert (found.value.search, found.pending, found.as_of) == ("full-text", True, 1.0)
        assert marks(found) == [(POSTGRES.id, "redis-cache")]
    assert world.postgres.breaker.state is CircuitState.OPEN
    assert world.vectors.breaker.snapshot().failures == 0
    asked = len(world.remote.asked)
    await world.memories.search(OWNER, "passport")
    assert len(world.remote.asked) == asked, "nothing is embedded that cannot be compared"
    with pytest.raises(Exception, match="open"):
        await world.memories.search("bob", "passport")


async def test_what_waits_in_the_queue_is_found_or_gone_already() -> None:
    world = World()
    made = world.writes.create("a spring in the mattress")
    found = await world.memories.search(OWNER, "spring")
    assert {match.memory.id for match in found.value.matches} == {made.id, world.store.items[0].id}
    world.writes.delete(world.store.items[0].id)
    found = await world.memories.search(OWNER, "spring")
    assert [match.memory.id for match in found.value.matches] == [made.id]
    listed = await world.memories.page(OWNER)
    assert ([item.id for item in listed.value.items], listed.pending) == ([made.id], True)


# -- small parts


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50))
def test_a_vector_goes_through_a_queued_write_unchanged(numbers: list[float]) -> None:
    given = creation(memory("x"), "", Vectors([numbers], "m", 1))
    assert vectors_of(Operation("id", CREATE, "e", OWNER, given)) == Vectors([numbers], "m", 0)


@given(st.dictionaries(st.sampled_from(["model", "numbers"]), st.one_of(st.text(), st.integers(), st.none())))
def test_a_vector_that_cannot_be_read_is_none(broken: dict[str, Any]) -> None:
    found = vectors_of(Operation("id", CREATE, "e", OWNER, {"vector": broken}))
    assert found is None or (found.model == broken["model"] and found.values[0])


def test_a_creation_that_is_deleted_again_while_both_wait_is_not_shown() -> None:
    writes = Writes()
    made = writes.create("for a moment")
    assert set(memories_changed([], writes.waiting)) == {made.id}
    writes.delete(made.id)
    assert memories_changed([], writes.waiting) == {}


@given(st.text(), st.text())
def test_all_words_must_be_there(text: str, query: str) -> None:
    item = replace(memory("x"), text=text)
    matches = holding([item], query)
    assert all(0.5 < match.score <= 1 for match in matches)
    assert holding([replace(item, text=f"{text} zebra")], f"{query} quagga") == []
