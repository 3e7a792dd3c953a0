"""AI Core as a gateway: OpenAI's own client, unchanged, on a platform whose providers break as they are told."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import orjson
import pytest
import pytest_asyncio

from service_kit.tokens import TokenIssuer
from tests.harness.client import Account
from tests.harness.platform import Platform, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.stack]

CHAT = ("openai:gpt-4", "openai:gpt-3.5-turbo", "anthropic:claude-sonnet-5-5")
SAID = "[simulated] You said: “{}” (message 1 of this conversation). No language model was asked."


class Gateway:
    """A client of the gateway, and the hand that breaks its providers."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        token = TokenIssuer(platform.stack.state.secret("jwt")).issue(f"gateway-{uuid.uuid4()}", "session")
        self.client = openai.AsyncOpenAI(
            base_url=platform.stack.url("ai-core") + "/v1", api_key=token, max_retries=0, timeout=10.0
        )

    def chat(self, message: str, **fields: Any) -> Any:
        """Awaitable: the answer or the stream."""
        asked: Any = [{"role": "user", "content": message}]
        return self.client.chat.completions.create(**{"model": "auto", "messages": asked, **fields})

    async def first_serves(self) -> bool:
        """Whether the chain's first link answers, and does not rest after the limit of rate that a test gave it."""
        return bool(about(await self.chat(word()))["fallback_from"] is None)

    async def admin(self, method: str, path: str, **content: Any) -> Any:
        async with self.platform.session.request(
            method, f"{self.platform.stack.url('providers')}/admin{path}", **content
        ) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json(content_type=None) if answer.content_length else None

    async def fault(self, target: str, fault: str, **members: Any) -> None:
        await self.admin("PUT", f"/faults/{target}", json={"fault": fault, **members})

    async def reset(self) -> bool:
        """Closes AI Core's circuits; a connection may still be one to a process that has gone."""
        path, headers = "/admin/circuit-breaker/reset", self.platform.admin
        try:
            return (await self.platform.call("POST", path, at="ai-core", headers=headers)).status == 200
        except (aiohttp.ClientError, OSError):
            return False

    async def calls(self, target: str) -> int:
        counted: dict[str, Any] = (await self.admin("GET", "/calls")).get(target, {})
        return int(counted.get("calls", 0))


@pytest_asyncio.fixture(loop_scope="session")
async def gateway(platform: Platform) -> AsyncIterator[Gateway]:
    await platform.healthy()
    found = Gateway(platform)
    await eventually(found.first_serves, "the first link has had its rest", 15.0)
    yield found
    await found.client.close()
    await found.admin("DELETE", "/faults")
    await eventually(found.reset, "AI Core's circuits can be reset", 15.0)
    await platform.healthy()


def about(answer: Any) -> dict[str, Any]:
    """The gateway's own member of an answer."""
    found: dict[str, Any] = (answer.model_extra or {})["auralink"]
    return found


def word() -> str:
    """A question that nobody has asked."""
    return uuid.uuid4().hex


async def text_of(stream: Any) -> str:
    return "".join([one.choices[0].delta.content or "" async for one in stream if one.choices])


async def test_a_conversation_goes_on(gateway: Gateway) -> None:
    question = word()
    answer = await gateway.chat(question, temperature=0.2, user="somebody")
    assert answer.choices[0].message.content == SAID.format(question)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 10
    known = about(answer)
    assert (known["provider"], known["model"], known["simulated"]) == ("openai", "gpt-4", True)
    assert (known["cached"], known["fallback_from"]) == (False, None)


async def test_the_same_as_a_stream(gateway: Gateway) -> None:
    question = word()
    chunks = [one async for one in await gateway.chat(question, stream=True, stream_options={"include_usage": True})]
    assert about(chunks[0])["model"] == "gpt-4"
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == SAID.format(question)
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 10
    assert "cost" in about(chunks[-1])


@pytest.mark.parametrize("name", [*CHAT, "claude-sonnet-5-5", "gpt-3.5-turbo"])
async def test_every_model_of_the_chain_answers_by_its_name(gateway: Gateway, name: str) -> None:
    for stream in (False, True):
        answer = await gateway.chat(word(), model=name, stream=stream)
        if stream:
            chunks = [one async for one in answer]
            assert chunks[-1].choices[0].finish_reason == "stop"
            answer = chunks[0]
        known = about(answer)
        assert name in (known["model"], f"{known['provider']}:{known['model']}")
        assert known["fallback_from"] is None


async def test_texts_are_embedded_by_the_local_model_and_by_the_providers(gateway: Gateway) -> None:
    texts = ["a cat sat on the mat", "a cat sat on the mat", "interest rates rose"]
    for model, size in (("local", 384), ("text-embedding-3-small", 1536)):
        made = await gateway.client.embeddings.create(model=model, input=texts)
        one, same, other = (item.embedding for item in made.data)
        assert len(one) == size
        assert one == pytest.approx(same, abs=1e-6)
        assert sum(a * b for a, b in zip(one, other, strict=True)) < 0.9
        assert made.usage.prompt_tokens > 0


async def test_the_models_are_listed(gateway: Gateway) -> None:
    names = [model.id for model in (await gateway.client.models.list()).data]
    assert names[:4] == ["auto", "gpt-4", "gpt-3.5-turbo", "claude-sonnet-5-5"]
    for name in names:
        assert (await gateway.client.models.retrieve(name)).id == name


async def test_errors_are_the_sdks_own(gateway: Gateway) -> None:
    stranger = gateway.client.with_options(api_key="sk-wrong")
    with pytest.raises(openai.AuthenticationError):
        await stranger.models.list()
    with pytest.raises(openai.NotFoundError) as missing:
        await gateway.chat(word(), model="gpt-9")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        await gateway.chat(word(), messages=[])
    await gateway.admin("DELETE", "/calls")
    for fault, code in (("bad_request", "validation_error"), ("policy", "validation_error")):
        await gateway.fault("openai:gpt-4", fault)
        with pytest.raises(openai.BadRequestError) as refused:
            await gateway.chat(word())
        assert refused.value.code == code
    assert await gateway.calls("openai:gpt-3.5-turbo") == 0, "what is the request's own fault goes to nobody else"


@pytest.mark.parametrize("fault", ["refuse", "error", "malformed", "empty", "html", "rate_limit_no_hint"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_next_provider_answers_and_it_says_so(gateway: Gateway, fault: str, stream: bool) -> None:
    await gateway.fault("openai:gpt-4", fault, after_tokens=0)
    question = word()
    raw = await gateway.client.chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": question}], stream=stream
    )
    assert raw.headers["x-degraded-mode"] == "true"
    assert raw.headers["x-fallback-used"] == "openai:gpt-3.5-turbo"
    answer: Any = raw.parse()
    if stream:
        chunks = [one async for one in answer]
        text, answer = "".join(one.choices[0].delta.content or "" for one in chunks), chunks[0]
    else:
        text = answer.choices[0].message.content
    assert text == SAID.format(question)
    assert about(answer)["fallback_from"] == "openai:gpt-4"


@pytest.mark.parametrize("fault", ["cut", "stall", "malformed", "error_event", "unfinished"])
async def test_a_provider_that_breaks_in_the_middle_is_an_error_with_what_was_sent(
    gateway: Gateway, fault: str
) -> None:
    await gateway.fault("openai:gpt-4", fault, after_tokens=4)
    stream = await gateway.chat(word(), stream=True)
    got = ""
    error: Any = None
    try:
        async for one in stream:
            got += one.choices[0].delta.content or ""
    except openai.APIError as raised:
        error = raised
    assert error is not None, "it must not look like a clean end"
    assert error.code == "stream_broken"
    assert error.body["sent_characters"] == len(got) > 0
    assert SAID.startswith(got[: len("[simulated] You said: ")])


async def test_without_any_provider_the_identical_query_is_answered_and_no_other(gateway: Gateway) -> None:
    kept, never = word(), word()
    first = await gateway.chat(kept)
    for target in CHAT:
        await gateway.fault(target, "error")
    again = await gateway.client.chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": kept}]
    )
    answer: Any = again.parse()
    assert answer.choices == first.choices
    assert about(answer)["cached"]
    assert again.headers["x-fallback-used"] == "response-cache"
    assert int(again.headers["age"]) >= 0
    assert await text_of(await gateway.chat(kept, stream=True)) == SAID.format(kept)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as gone:
            await gateway.chat(never, stream=stream)
        body: Any = gone.value.body
        assert (gone.value.status_code, body["message"]) == (503, "All AI providers unavailable")
        assert 1 <= int(gone.value.response.headers["retry-after"]) <= 31
    stranger = Gateway(gateway.platform)
    with pytest.raises(openai.InternalServerError):
        await stranger.chat(kept)
    await stranger.client.close()


async def test_the_sdks_own_retry_waits_as_told_and_gets_its_answer(gateway: Gateway) -> None:
    for target in CHAT:
        await gateway.fault(target, "error", times=1)
    patient = gateway.client.with_options(max_retries=2, timeout=20.0)
    question: Any = [{"role": "user", "content": word()}]
    answer = await patient.chat.completions.create(model="auto", messages=question)
    assert answer.choices[0].message.content


async def test_a_fresh_answer_is_given_again_to_who_takes_it(gateway: Gateway) -> None:
    question = word()
    await gateway.chat(question)
    await gateway.admin("DELETE", "/calls")
    taken = await gateway.chat(question, extra_headers={"Cache-Control": "max-age=60"})
    assert about(taken)["cached"]
    assert await gateway.calls("openai:gpt-4") == 0
    assert not about(await gateway.chat(question))["cached"]
    assert await gateway.calls("openai:gpt-4") == 1


# --- an agent's answer, through the Dashboard


async def events_of(response: Any) -> list[tuple[str, Any]]:
    blocks = [block for block in (await response.read()).split(b"\n\n")[:-1] if block.startswith(b"event: ")]
    lines = [block.split(b"\n") for block in blocks]
    return [(kind[len(b"event: ") :].decode(), orjson.loads(data[len(b"data: ") :])) for kind, data in lines]


def ask(platform: Platform, account: Account, message: str, **fields: Any) -> Any:
    """A request for a stream; an async context manager."""
    return platform.session.post(
        f"{platform.stack.url('dashboard')}/api/v1/agents/{account.agent}/chat",
        json={"message": message, **fields},
        headers={**account.headers, "accept": "text/event-stream"},
    )


@pytest_asyncio.fixture(loop_scope="session")
async def account(platform: Platform) -> Account:
    return await platform.equip(await platform.register())


async def test_a_browser_gets_an_agents_answer_as_it_comes(
    gateway: Gateway, platform: Platform, account: Account
) -> None:
    async with ask(platform, account, "Hello") as response:
        assert response.status == 200
        assert "x-degraded-mode" not in response.headers
        events = await events_of(response)
    assert [events[0][0], events[-1][0]] == ["start", "end"]
    assert "".join(data["text"] for kind, data in events if kind == "delta") == SAID.format("Hello")
    end = events[-1][1]
    assert (end["provider"], end["model"], end["finish_reason"], end["degraded"]) == ("openai", "gpt-4", "stop", False)
    assert end["usage"]["completion_tokens"] > 10
    more = {"conversation_id": end["conversation_id"]}
    async with ask(platform, account, "And again", **more) as response:
        events = await events_of(response)
    text = "".join(data["text"] for kind, data in events if kind == "delta")
    assert "(message 3 of this conversation)" in text, "the first exchange was remembered"
    body = {"message": "And whole", **more}
    plain = await platform.call("POST", f"/api/v1/agents/{account.agent}/chat", account, json=body)
    assert "(message 5 of this conversation)" in plain.body["reply"]
    assert plain.body["usage"]["completion_tokens"] > 10
    path = f"/api/v1/agents/{account.agent}/conversations"
    listed = (await platform.call("GET", path, account)).body
    assert [one["id"] for one in listed["items"]] == [end["conversation_id"]]
    said = (await platform.call("GET", f"{path}/{end['conversation_id']}", account)).body["turns"]
    assert [turn["content"] for turn in said if turn["role"] == "user"] == ["Hello", "And again", "And whole"]
    assert (await platform.call("DELETE", f"{path}/{end['conversation_id']}", account)).status == 204
    assert (await platform.call("GET", path, account)).body["items"] == []
    assert (await platform.call("GET", f"{path}/{end['conversation_id']}", account)).status == 404


async def test_a_browser_is_told_of_the_fallback_and_of_the_break(
    gateway: Gateway, platform: Platform, account: Account
) -> None:
    await gateway.fault("openai:gpt-4", "error")
    async with ask(platform, account, "Hello") as response:
        assert response.headers["x-fallback-used"] == "openai:gpt-3.5-turbo"
        events = await events_of(response)
    assert events[0][1]["fallback_from"] == events[-1][1]["fallback_from"] == "openai:gpt-4"
    assert events[-1][1]["fallbacks"] == ["openai:gpt-3.5-turbo"]
    await gateway.fault("openai:gpt-3.5-turbo", "cut", after_tokens=4)
    async with ask(platform, account, word()) as response:
        events = await events_of(response)
    sent = "".join(data["text"] for kind, data in events if kind == "delta")
    assert [events[0][0], events[-1][0]] == ["start", "error"]
    assert events[-1][1]["sent_characters"] == len(sent) > 0
    for target in CHAT:
        await gateway.fault(target, "error")
    async with ask(platform, account, word()) as response:
        problem = await response.json()
        assert (response.status, problem["message"]) == (503, "All AI providers unavailable")
        assert int(response.headers["retry-after"]) >= 1


async def test_a_browser_that_leaves_ends_the_call_of_the_provider(
    gateway: Gateway, platform: Platform, account: Account
) -> None:
    await gateway.fault("openai:gpt-4", "stall", after_tokens=4)

    async def cancelled() -> float:
        text = (await platform.call("GET", "/metrics", at="ai-core")).body
        lines = [line for line in text.splitlines() if "gen_ai_client_operation_duration" in line]
        return sum(float(line.split()[-1]) for line in lines if "_count{" in line and '"cancelled"' in line)

    before = await cancelled()
    async with ask(platform, account, word()) as response:
        await response.content.readuntil(b"event: delta")
        response.close()

    async def one_more() -> bool:
        return await cancelled() == before + 1

    await eventually(one_more, "AI Core has given up the call", 3.0)


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_an_ai_core_that_goes_in_the_middle_is_an_error_soon(
    gateway: Gateway, platform: Platform, account: Account, fault: str
) -> None:
    await gateway.fault("openai:gpt-4", "stall", after_tokens=4, seconds=60)
    try:
        async with asyncio.timeout(8), ask(platform, account, word()) as response:
            begun = await response.content.readuntil(b"event: delta")
            await getattr(platform.stack, fault)("ai-core")
            events = await events_of(response)
    finally:
        await platform.stack.heal("ai-core")
    assert b"event: start" in begun
    assert events[-1][0] == "error"
    assert events[-1][1]["message"] == "AI temporarily unavailable"
    assert events[-1][1]["sent_characters"] > 0
