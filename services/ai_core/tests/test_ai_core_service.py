"""AI Core as a process on a real PostgreSQL and a real provider process, while both are killed, frozen and cut off."""

import asyncio
import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import grpc
import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask

from ai_core.degradation import POSTGRES, PROVIDERS
from auralink.ai.v1 import ai_pb2, ai_pb2_grpc
from devstack import Stack, Topology
from service_kit.errors import DependencyUnavailable, ServiceError
from service_kit.rpc_client import channel
from service_kit.rpc_errors import from_grpc
from service_kit.tokens import TokenIssuer

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMPONENTS = frozenset({"postgres", "providers", "ai-core"})
LINKS = ("openai:gpt-4", "openai:gpt-3.5-turbo", "anthropic:claude-sonnet-5-5")
AGENTS = "/api/v1/agents"
DEADLINE = 2.0  # s, every request's
RECOVERY = 5.0  # s from the dependency's return to its use


class Client:
    """Talks to the running AI Core as one user, through both doors."""

    def __init__(self, stack: Stack, session: aiohttp.ClientSession, user: str) -> None:
        self.stack = stack
        self._session = session
        self.token = TokenIssuer(stack.state.secret("jwt")).issue(user, "session")
        self._channel = channel(stack.grpc("ai-core"))
        services = (
            ai_pb2_grpc.AgentServiceStub,
            ai_pb2_grpc.MemoryServiceStub,
            ai_pb2_grpc.LanguageServiceStub,
            ai_pb2_grpc.OperationServiceStub,
        )
        self._stubs = [stub(self._channel) for stub in services]

    async def close(self) -> None:
        await self._channel.close()

    async def http(self, method: str, path: str, body: Any = None, **headers: str) -> "Answer":
        sent = {"Authorization": f"Bearer {self.token}", **{name.replace("_", "-"): v for name, v in headers.items()}}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        begun = time.monotonic()
        async with self._session.request(method, self.stack.url("ai-core") + path, data=data, headers=sent) as response:
            text = await response.text()
            seconds = time.monotonic() - begun
            return Answer(response.status, json.loads(text) if text else None, response.headers, seconds)

    async def rpc(self, method: str, request: Any, timeout: float = DEADLINE) -> Any:
        metadata = (("authorization", f"Bearer {self.token}"),)
        stub = next(stub for stub in self._stubs if hasattr(stub, method))
        return await getattr(stub, method)(request, timeout=timeout, metadata=metadata)

    async def rpc_error(self, method: str, request: Any) -> tuple[grpc.StatusCode, ServiceError]:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.rpc(method, request)
        return raised.value.code(), from_grpc(raised.value)

    async def agent(self, **fields: str) -> str:
        made = await self.http("POST", AGENTS, {"name": "Ada", "system_prompt": "Be brief.", **fields})
        assert made.status == 201, made.body
        return str(made.body["id"])

    async def chat(self, agent: str, message: str = "Hello", **fields: str) -> "Answer":
        return await self.http("POST", f"{AGENTS}/{agent}/chat", {"message": message, **fields})

    async def circuit(self, dependency: str) -> str:
        detailed = await self.http("GET", "/health/detailed")
        return str(detailed.body["dependencies"][dependency]["circuit"])


class Answer:
    def __init__(self, status: int, body: Any, headers: Mapping[str, str], seconds: float) -> None:
        self.status = status
        self.body = body
        self.headers = headers
        self.seconds = seconds


async def until(condition: Callable[[], Awaitable[bool]], limit: float = RECOVERY) -> float:
    """Waits for a condition; seconds that it took."""
    begun = time.monotonic()
    while not await condition():
        assert time.monotonic() - begun < limit, "it did not happen in time"
        await asyncio.sleep(0.05)
    return time.monotonic() - begun


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    topology = Topology(only=COMPONENTS)
    async with Stack(tmp_path_factory.mktemp("ai-core"), topology, port_base=None) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alice(stack: Stack) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        client = Client(stack, session, "alice")

        async def migrated() -> bool:
            return (await client.http("GET", AGENTS)).status == 200

        await until(migrated)
        yield client
        await client.close()


@pytest_asyncio.fixture(loop_scope="module")
async def healthy(stack: Stack, alice: Client) -> AsyncIterator[None]:
    """The test may break things: afterwards they are whole again, whatever happened."""
    yield
    for component in COMPONENTS:
        await stack.heal(component)
    for dependency in ("postgres", *LINKS):

        async def closed(dependency: str = dependency) -> bool:
            return await alice.circuit(dependency) == "closed"

        await until(closed, PROVIDERS.open_seconds)


async def test_an_agents_life_over_http(alice: Client) -> None:
    agent = await alice.agent(model="gpt-3.5-turbo")
    read = await alice.http("GET", f"{AGENTS}/{agent}")
    assert read.status == 200
    assert (read.body["name"], read.body["model"]) == ("Ada", "gpt-3.5-turbo")
    assert "X-Degraded-Mode" not in read.headers
    changed = await alice.http("PATCH", f"{AGENTS}/{agent}", {"name": "Bea"})
    assert (changed.body["name"], changed.body["system_prompt"]) == ("Bea", "Be brief.")
    assert (await alice.http("DELETE", f"{AGENTS}/{agent}")).status == 204
    gone = await alice.http("GET", f"{AGENTS}/{agent}")
    assert (gone.status, gone.body["error"]) == (404, "NOT_FOUND")
    assert gone.headers["Content-Type"] == "application/problem+json"


async def test_the_same_over_grpc(alice: Client) -> None:
    request = ai_pb2.CreateAgentRequest(name="Ada", idempotency_key="grpc-1")
    made = (await alice.rpc("CreateAgent", request)).agent
    assert (await alice.rpc("CreateAgent", request)).agent == made
    change = ai_pb2.UpdateAgentRequest(
        agent=ai_pb2.Agent(id=made.id, name="Bea", system_prompt="x"), update_mask=FieldMask(paths=["name"])
    )
    changed = (await alice.rpc("UpdateAgent", change)).agent
    assert (changed.name, changed.system_prompt) == ("Bea", "")
    assert (await alice.http("GET", f"{AGENTS}/{made.id}")).body["name"] == "Bea"
    reply = await alice.rpc("Chat", ai_pb2.ChatRequest(agent_id=made.id, message="Hello"))
    assert reply.simulated
    await alice.rpc("DeleteAgent", ai_pb2.DeleteAgentRequest(id=made.id))
    code, error = await alice.rpc_error("GetAgent", ai_pb2.GetAgentRequest(id=made.id))
    assert (code, error.reason.value) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    wrong = ai_pb2.UpdateAgentRequest(agent=ai_pb2.Agent(id=made.id), update_mask=FieldMask(paths=["owner_id"]))
    assert (await alice.rpc_error("UpdateAgent", wrong))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_lists_are_paged_and_one_users_own(stack: Stack, alice: Client) -> None:
    async with aiohttp.ClientSession() as session:
        bob = Client(stack, session, "bob")
        ids = [await bob.agent(name=f"agent {number}") for number in range(3)]
        first = (await bob.http("GET", f"{AGENTS}?limit=2")).body
        rest = (await bob.http("GET", f"{AGENTS}?limit=2&cursor={first['next_cursor']}")).body
        assert [agent["id"] for agent in first["items"] + rest["items"]] == ids[::-1]
        assert rest["next_cursor"] is None
        for method, path, body in (
            ("GET", f"{AGENTS}/{ids[0]}", None),
            ("PATCH", f"{AGENTS}/{ids[0]}", {"name": "Eve"}),
            ("DELETE", f"{AGENTS}/{ids[0]}", None),
            ("POST", f"{AGENTS}/{ids[0]}/chat", {"message": "hi"}),
        ):
            assert (await alice.http(method, path, body)).status == 404
        await bob.close()


async def test_a_repeated_key_is_the_same_request(alice: Client) -> None:
    answers = [await alice.http("POST", AGENTS, {"name": "Once"}, Idempotency_Key="k-1") for _ in range(2)]
    assert [answer.status for answer in answers] == [201, 201]
    assert answers[0].body["id"] == answers[1].body["id"]
    other = await alice.http("POST", AGENTS, {"name": "Twice"}, Idempotency_Key="k-1")
    assert (other.status, other.body["error"]) == (409, "CONFLICT")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"name": "\\ud800"}', 400),
        (b'{"name": "\xff"}', 400),
        (b"x" * 1_020_000, 413),
        ({}, 422),
        ([], 422),
        ({"name": ""}, 422),
        ({"name": " "}, 422),
        ({"name": 5}, 422),
        ({"name": "x" * 101}, 422),
        ({"name": "a\x00b"}, 422),
        ({"name": "x", "system_prompt": "y" * 20_001}, 422),
        ({"name": "x", "owner_id": "bob"}, 422),
        ({"name": "x", "model": "no spaces"}, 422),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_bodies_are_refused(alice: Client, body: Any, status: int) -> None:
    answer = await alice.http("POST", AGENTS, body)
    assert (answer.status, answer.body["error"]) == (status, "VALIDATION_ERROR")


async def test_bad_callers_and_ids_are_refused(alice: Client) -> None:
    for token in ("", "Bearer nonsense", f"Bearer {TokenIssuer('x' * 40).issue('alice', 's')}"):
        assert (await alice.http("GET", AGENTS, Authorization=token)).status == 401
    for path in (f"{AGENTS}/0", f"{AGENTS}/'%20OR%201=1", f"{AGENTS}/{'9' * 99}"):
        assert (await alice.http("GET", path)).status == 404
    for query in ("limit=0", "limit=x", "cursor=%20", "cursor=AAAA"):
        assert (await alice.http("GET", f"{AGENTS}?{query}")).status == 422
    agent = await alice.agent()
    assert (await alice.chat(agent, "")).status == 422
    assert (await alice.chat(agent, "x" * 20_001)).status == 422
    assert (await alice.chat(agent, conversation_id="x")).status == 422


async def test_chat_answers_with_the_contracts_fields_and_remembers(alice: Client) -> None:
    agent = await alice.agent()
    first = await alice.chat(agent, "What is AuraLink?")
    assert first.status == 200
    assert first.body["reply"].startswith("[simulated]")
    assert "What is AuraLink?" in first.body["reply"]
    told = {key: first.body[key] for key in ("provider", "model", "cached", "fallback_from", "simulated")}
    assert told == {
        "provider": "openai",
        "model": "gpt-4",
        "cached": False,
        "fallback_from": None,
        "simulated": True,
    }
    second = await alice.chat(agent, "And then?", conversation_id=first.body["conversation_id"])
    assert "message 3 of this conversation" in second.body["reply"]


async def test_conversations_over_http_and_grpc(stack: Stack, alice: Client) -> None:
    agent = await alice.agent()
    first, second = [(await alice.chat(agent, text)).body["conversation_id"] for text in ("one", "two")]
    listed = (await alice.http("GET", f"{AGENTS}/{agent}/conversations?limit=1")).body
    assert [one["id"] for one in listed["items"]] == [second]
    request = ai_pb2.ListConversationsRequest(agent_id=agent, cursor=listed["next_cursor"])
    rest = await alice.rpc("ListConversations", request)
    assert ([one.id for one in rest.items], rest.next_cursor) == ([first], "")
    read = (await alice.http("GET", f"{AGENTS}/{agent}/conversations/{first}")).body
    one = ai_pb2.GetConversationRequest(agent_id=agent, conversation_id=first)
    same = await alice.rpc("GetConversation", one)
    assert [(turn.role, turn.content) for turn in same.turns] == [
        (turn["role"], turn["content"]) for turn in read["turns"]
    ]
    assert (same.turns[0].content, same.conversation.id, same.HasField("provenance")) == ("one", first, False)
    async with aiohttp.ClientSession() as session:
        bob = Client(stack, session, "bob")
        assert (await bob.http("GET", f"{AGENTS}/{agent}/conversations/{first}")).status == 404
        assert (await bob.rpc_error("GetConversation", one))[0] is grpc.StatusCode.NOT_FOUND
        await bob.close()
    answer = await alice.rpc(
        "DeleteConversation", ai_pb2.DeleteConversationRequest(agent_id=agent, conversation_id=first)
    )
    assert not answer.HasField("queued")
    assert (await alice.http("GET", f"{AGENTS}/{agent}/conversations/{first}")).status == 404
    assert (await alice.http("DELETE", f"{AGENTS}/{agent}/conversations/{second}")).status == 204
    assert (await alice.rpc("ListConversations", ai_pb2.ListConversationsRequest(agent_id=agent))).items == []
    for path in (f"{AGENTS}/{agent}/conversations/x", "/api/v1/operations/" + "0" * 32):
        assert (await alice.http("GET", path)).status in (404, 503)  # Redis, which knows what waits, is not there


async def test_an_unknown_model_is_the_agents_mistake(alice: Client) -> None:
    answer = await alice.chat(await alice.agent(model="gpt-nine"))
    assert (answer.status, answer.body["error"]) == (409, "CONFLICT")
    assert answer.body["suggestion"] == "Change the agent's model."


@pytest.mark.row("ai_core.providers")
@pytest.mark.parametrize("fault", ["kill", "freeze", "cut"])
async def test_a_lost_provider_costs_chat_only(stack: Stack, alice: Client, healthy: None, fault: str) -> None:
    agent = await alice.agent()
    await getattr(stack, fault)("providers")
    for number in range(PROVIDERS.max_failures * 3):
        failed = await alice.chat(agent, f"Hello {number}")
        assert failed.status == 503, failed.body
        assert (failed.body["error"], failed.body["message"]) == (
            "DEPENDENCY_UNAVAILABLE",
            "All AI providers unavailable",
        )
        assert int(failed.headers["Retry-After"]) >= 1
        assert failed.seconds < DEADLINE
    for link in LINKS:
        assert await alice.circuit(link) in ("open", "half-open")
    rejected = await alice.chat(agent)
    assert (rejected.status, rejected.body["message"]) == (503, "All AI providers unavailable")
    assert 1 <= int(rejected.headers["Retry-After"]) <= PROVIDERS.open_seconds
    assert rejected.seconds < 0.5
    code, error = await alice.rpc_error("Chat", ai_pb2.ChatRequest(agent_id=agent, message="hi"))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert isinstance(error, DependencyUnavailable)
    assert error.row == PROVIDERS.id
    assert (await alice.http("GET", f"{AGENTS}/{agent}")).status == 200
    await stack.heal("providers")

    async def answers() -> bool:
        return (await alice.chat(agent)).status == 200

    await until(answers)


@pytest.mark.row("ai_core.providers")
async def test_a_provider_that_answers_late_is_not_waited_for(stack: Stack, alice: Client, healthy: None) -> None:
    agent = await alice.agent()
    await stack.delay("providers", 5000)
    code, error = await alice.rpc_error("Chat", ai_pb2.ChatRequest(agent_id=agent, message="hi"))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert isinstance(error, DependencyUnavailable)


@pytest.mark.row("ai_core.postgres")
@pytest.mark.parametrize("fault", ["kill", "freeze", "cut"])
async def test_without_database_and_redis_memory_serves_and_writes_are_refused(
    stack: Stack, alice: Client, healthy: None, fault: str
) -> None:
    agent = await alice.agent()
    await getattr(stack, fault)("postgres")
    for _ in range(POSTGRES.max_failures + 1):
        answer = await alice.http("GET", f"{AGENTS}/{agent}")
        assert (answer.status, answer.body["stale"], answer.body["name"]) == (200, True, "Ada")
        assert answer.headers["X-Fallback-Used"] == "memory-cache"
        assert answer.seconds < DEADLINE
    unknown = await alice.http("GET", f"{AGENTS}/{uuid.uuid4()}")
    assert (unknown.status, unknown.body["row"]) == (429, POSTGRES.id)
    assert int(unknown.headers["Retry-After"]) >= 1
    refused = await alice.http("PATCH", f"{AGENTS}/{agent}", {"name": "Bea"})
    assert (refused.status, refused.body["queued"]) == (503, False)
    spoken = await alice.chat(agent)
    assert spoken.status == 200
    assert spoken.headers["X-Fallback-Used"] == "memory-cache, unsaved-history"
    assert (await alice.http("GET", "/health/ready")).status == 200
    detailed = (await alice.http("GET", "/health/detailed")).body
    assert detailed["status"] != "healthy"
    assert detailed["dependencies"]["postgres"]["circuit"] in ("open", "half_open")
    await stack.heal("postgres")

    async def live() -> bool:
        return "stale" not in (await alice.http("GET", f"{AGENTS}/{agent}")).body

    await until(live)
    await alice.agent(name="made after recovery")


async def test_a_restart_of_the_database_between_requests_is_not_noticed(
    stack: Stack, alice: Client, healthy: None
) -> None:
    agent = await alice.agent()
    await stack.kill("postgres")
    await stack.heal("postgres")
    assert (await alice.http("GET", f"{AGENTS}/{agent}")).status == 200


async def test_no_secret_and_no_address_is_logged(stack: Stack, alice: Client) -> None:
    log = stack.state.log("ai-core").read_text(errors="replace")
    for secret in (stack.state.secret("jwt"), stack.state.secret("postgres"), stack.admin_token, alice.token):
        assert secret not in log


async def test_it_starts_without_its_database_and_catches_up(tmp_path_factory: pytest.TempPathFactory) -> None:
    topology = Topology(only=COMPONENTS, proxied=False)
    late = Stack(tmp_path_factory.mktemp("ai-core-late"), topology, port_base=None, autostart=False)
    async with late as stack, aiohttp.ClientSession() as session:
        await stack.start("ai-core", "providers")
        await stack.wait_ready(20, "ai-core")
        client = Client(stack, session, "alice")
        assert (await client.http("POST", AGENTS, {"name": "Ada"})).status in (429, 503)

        async def says_so() -> bool:
            return await client.circuit("postgres") != "closed"

        await until(says_so, 10)
        await stack.start("postgres")
        await stack.wait_ready(30, "postgres")

        async def works() -> bool:
            return (await client.http("POST", AGENTS, {"name": "Ada"})).status == 201

        await until(works)
        await client.close()


async def test_a_memorys_life_over_http_and_grpc(stack: Stack, alice: Client) -> None:
    kept = await alice.http("POST", "/api/v1/memories", {"text": "The key is under the mat", "tags": ["home", "home"]})
    assert kept.status == 201
    assert kept.body["embedding"] in ("pending", "ready")
    assert kept.body["tags"] == ["home"]
    request = ai_pb2.CreateMemoryRequest(text="The cat sits on the mat", idempotency_key="m-1", id=str(uuid.uuid4()))
    second = (await alice.rpc("CreateMemory", request)).memory
    assert second.id == request.id
    assert (await alice.rpc("CreateMemory", request)).memory == second
    listed = (await alice.http("GET", "/api/v1/memories?limit=1")).body
    assert [item["id"] for item in listed["items"]] == [second.id]
    rest = await alice.rpc("ListMemories", ai_pb2.ListMemoriesRequest(cursor=listed["next_cursor"]))
    assert [memory.id for memory in rest.items] == [kept.body["id"]]

    async def embedded() -> bool:
        memories = (await alice.rpc("ListMemories", ai_pb2.ListMemoriesRequest())).items
        return all(memory.embedding == ai_pb2.EMBEDDING_STATUS_READY for memory in memories)

    await until(embedded, 30)
    found = (await alice.http("GET", "/api/v1/memories/search?q=how%20do%20I%20open%20the%20door")).body
    assert found["search"] == "semantic"
    assert found["items"][0]["id"] == kept.body["id"]
    assert 0 < found["items"][0]["score"] <= 1
    async with aiohttp.ClientSession() as session:
        bob = Client(stack, session, "bob")
        assert (await bob.rpc("SearchMemories", ai_pb2.SearchMemoriesRequest(query="mat"))).matches == []
        assert (await bob.http("DELETE", f"/api/v1/memories/{second.id}")).status == 404
        taken = ai_pb2.CreateMemoryRequest(text="Mine", id=second.id)
        assert (await bob.rpc_error("CreateMemory", taken))[0] is grpc.StatusCode.ALREADY_EXISTS
        await bob.close()
    await alice.rpc("DeleteMemory", ai_pb2.DeleteMemoryRequest(id=second.id))
    assert (await alice.http("DELETE", f"/api/v1/memories/{kept.body['id']}")).status == 204
    assert (await alice.http("GET", "/api/v1/memories")).body == {"items": [], "next_cursor": None}


async def test_a_creation_that_is_given_up_makes_nothing_any_more(alice: Client) -> None:
    for kind, request in (
        ("Agent", ai_pb2.CreateAgentRequest(name="Late", idempotency_key="late")),
        ("Memory", ai_pb2.CreateMemoryRequest(text="Late", idempotency_key="late")),
    ):
        abandon = getattr(ai_pb2, f"Abandon{kind}Request")
        await alice.rpc(f"Abandon{kind}", abandon(idempotency_key="late"))
        assert (await alice.rpc_error(f"Create{kind}", request))[0] is grpc.StatusCode.ALREADY_EXISTS
        request.idempotency_key = "in time"
        made = await alice.rpc(f"Create{kind}", request)
        await alice.rpc(f"Abandon{kind}", abandon(idempotency_key="in time"))
        assert await alice.rpc(f"Create{kind}", request) == made
        assert (await alice.rpc_error(f"Abandon{kind}", abandon()))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_agent_gets_the_id_that_its_caller_chose(stack: Stack, alice: Client) -> None:
    chosen = str(uuid.uuid4())
    request = ai_pb2.CreateAgentRequest(name="Chosen", idempotency_key=f"k-{chosen}", id=chosen)
    made = (await alice.rpc("CreateAgent", request)).agent
    assert made.id == chosen
    assert (await alice.rpc("CreateAgent", request)).agent == made
    other = ai_pb2.CreateAgentRequest(name="Another", id=chosen)
    assert (await alice.rpc_error("CreateAgent", other))[0] is grpc.StatusCode.ALREADY_EXISTS
    for wrong in ("1", chosen.upper(), chosen + "0"):
        code, _ = await alice.rpc_error("CreateAgent", ai_pb2.CreateAgentRequest(name="x", id=wrong))
        assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_translation_says_who_made_it(alice: Client) -> None:
    made = await alice.http("POST", "/api/v1/translate", {"text": "Good morning", "target_language": "de"})
    assert made.status == 200
    assert "X-Degraded-Mode" not in made.headers
    assert (made.body["translated"], made.body["simulated"], made.body["provider"]) == (True, True, "openai")
    assert made.body["text"] == "[simulated] (de) Good morning"
    for wrong in ({"text": "x"}, {"text": "", "target_language": "de"}, {"text": "x", "target_language": "de;"}):
        assert (await alice.http("POST", "/api/v1/translate", wrong)).status == 422


async def test_a_text_is_spoken(alice: Client) -> None:
    spoken = await alice.http("POST", "/api/v1/speech", {"text": "Hello"})
    assert (spoken.status, spoken.body["text"], spoken.body["provider"]) == (200, "Hello", "elevenlabs")
    assert base64.b64decode(spoken.body["audio"])[:4] == b"RIFF"
    assert spoken.body["simulated"] is True
    assert "X-Degraded-Mode" not in spoken.headers
    answer = await alice.rpc("Speak", ai_pb2.SpeakRequest(text="Hello"))
    assert answer.audio[:4] == b"RIFF"
    assert (answer.content_type, answer.provider, answer.simulated) == ("audio/wav", "elevenlabs", True)


@pytest.mark.row("ai_core.providers")
@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_without_its_provider_a_text_comes_back_untranslated(
    stack: Stack, alice: Client, healthy: None, fault: str
) -> None:
    await getattr(stack, fault)("providers")
    for _ in range(PROVIDERS.max_failures + 1):
        made = await alice.http("POST", "/api/v1/translate", {"text": f"Good {fault}", "target_language": "de"})
        assert (made.status, made.body["text"], made.body["translated"]) == (200, f"Good {fault}", False)
        assert made.headers["X-Fallback-Used"] == "original-text"
        assert made.seconds < DEADLINE
    assert made.headers["X-Circuit-State"] == "open"


class Simulator:
    """The provider's own account of what it was asked."""

    def __init__(self, stack: Stack, session: aiohttp.ClientSession) -> None:
        self._base = stack.url("providers") + "/admin"
        self._session = session

    async def order(self, target: str, fault: str, **members: Any) -> None:
        await self._send("PUT", f"/faults/{target}", {"fault": fault, **members})

    async def counted(self, name: str, what: str) -> int:
        return int((await self._send("GET", "/calls")).get(name, {}).get(what, 0))

    async def reset(self) -> None:
        await self._send("DELETE", "/faults")
        await self._send("DELETE", "/calls")

    async def _send(self, method: str, path: str, body: Any = None) -> Any:
        async with self._session.request(method, self._base + path, json=body) as response:
            return await response.json()


@pytest_asyncio.fixture(loop_scope="module")
async def simulator(stack: Stack, alice: Client) -> AsyncIterator[Simulator]:
    async with aiohttp.ClientSession() as session:
        found = Simulator(stack, session)
        await found.reset()
        yield found
        await found.reset()


Ask = Callable[[Client, str, str], Awaitable[Any]]


async def by_gateway(alice: Client, _agent: str, text: str) -> Any:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    return await alice.http("POST", "/v1/chat/completions", body)


async def by_http(alice: Client, agent: str, text: str) -> Any:
    return await alice.chat(agent, text)


async def by_stream(alice: Client, agent: str, text: str) -> Any:
    return await alice.http("POST", f"{AGENTS}/{agent}/chat", {"message": text}, accept="text/event-stream")


async def by_translation(alice: Client, _agent: str, text: str) -> Any:
    return await alice.http("POST", "/api/v1/translate", {"text": text, "target_language": "fr"})


async def by_grpc(alice: Client, agent: str, text: str) -> Any:
    return await alice.rpc("Chat", ai_pb2.ChatRequest(agent_id=agent, message=text))


@pytest.mark.parametrize("ask", [by_gateway, by_http, by_stream, by_translation, by_grpc])
async def test_a_caller_who_leaves_takes_the_providers_call_along(
    alice: Client, simulator: Simulator, ask: Ask
) -> None:
    agent = await alice.agent()
    await simulator.order("openai:gpt-4", "hang")
    asking = asyncio.ensure_future(ask(alice, agent, f"leaving {ask.__name__}"))

    async def asked() -> bool:
        return await simulator.counted("openai:gpt-4", "calls") == 1

    async def left() -> bool:
        return await simulator.counted("openai:gpt-4", "left") == 1

    await until(asked)
    asking.cancel()
    await until(left)
    # Given up for want of time the query would have gone on to the next link.
    assert await simulator.counted("openai:gpt-3.5-turbo", "calls") == 0
    assert await alice.circuit("openai:gpt-4") == "closed"


async def test_who_shares_a_call_keeps_it_when_another_leaves(alice: Client, simulator: Simulator) -> None:
    await simulator.order("openai:gpt-4", "slow", seconds=0.6)
    first, second = (asyncio.ensure_future(by_gateway(alice, "", "shared")) for _ in range(2))

    async def asked() -> bool:
        return await simulator.counted("openai:gpt-4", "calls") == 1

    await until(asked)
    first.cancel()
    answer = await second
    assert (answer.status, answer.body["auralink"]["fallback_from"]) == (200, None)
    counts = [await simulator.counted("openai:gpt-4", what) for what in ("calls", "left")]
    assert counts == [1, 0]
