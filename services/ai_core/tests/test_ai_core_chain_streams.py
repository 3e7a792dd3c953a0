"""Streamed answers on a clock that stands still: failover until the first token, an honest end after it."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from ai_core.degradation import PROVIDERS, RESPONSE_CACHE
from ai_core.model import RequestRefused
from ai_core.ports import ModelUnknown, ProviderBusy, ProviderFailed
from ai_core.query import Chunk, Usage
from ai_core.usecases.chain import AllProvidersGone, Stream, StreamBroken
from resilience import Served
from services.ai_core.tests.chain_fakes import HANG, LINKS, ROLE, WHOLE, Step, World, chunk, completion, query

CUT = ProviderFailed("the connection was closed")
EARLY: dict[str, tuple[Step, ...]] = {
    "refused": (CUT,),
    "cut after the role": ([ROLE], CUT),
    "ends without content": ([ROLE], [chunk(finish="stop")]),
    "hangs": (HANG,),
    "slow first token: pings and the role only": ([ROLE], [chunk()], HANG),
    "a raw transport exception": ([ROLE], ConnectionResetError("10.0.0.1")),
    "429": (ProviderBusy("openai", 9.0),),
    "unknown model": (ModelUnknown("gpt-4"),),
}
NEUTRAL = ("429", "unknown model")


async def opened(world: World, **more: object) -> Served[Stream]:
    """A stream, moving time until it is there."""
    task = asyncio.ensure_future(world.chain.stream(query(**more)))  # type: ignore[arg-type]
    for _ in range(40):
        await world.clock.advance(0.05)
        if task.done():
            break
    return await task


async def read(stream: Stream) -> str:
    """All of its text."""
    async with stream:
        return "".join(one.text for batch in [batch async for batch in stream] for one in batch)


async def test_a_whole_stream() -> None:
    world = World()
    served = await opened(world)
    stream = served.value
    assert (stream.provider, stream.model, stream.fallback_from, stream.cached) == ("openai", "gpt-4", "", False)
    assert served.degradations == ()
    assert await read(stream) == stream.text == "Good day"
    assert (stream.finish_reason, stream.usage) == ("stop", Usage(7, 2))
    assert stream.cost == pytest.approx((7 * 30 + 2 * 60) / 1e6)
    [attempt] = world.attempts
    assert (attempt.streamed, attempt.error, attempt.usage) == (True, "", Usage(7, 2))
    assert attempt.first_token is not None
    assert world.open_calls == world.places_taken == world.clock.pending == 0


@pytest.mark.parametrize("fault", EARLY)
@pytest.mark.parametrize("at", [0, 1])
async def test_it_fails_over_until_the_first_token(at: int, fault: str) -> None:
    world = World()
    for place in range(at + 1):
        world.streamed(place, *EARLY[fault])
    began = world.clock.monotonic()
    served = await opened(world)
    assert world.clock.monotonic() - began <= 1.5
    assert (served.value.fallback_from, served.value.provider) == ("openai:gpt-4", LINKS[at + 1].provider)
    assert [(one.row, one.fallback) for one in served.degradations] == [(PROVIDERS.id, LINKS[at + 1].name)]
    assert await read(served.value) == "Good day"
    assert [world.calls(place) for place in range(at + 2)] == [1] * (at + 2)
    assert world.open_calls == world.places_taken == 0


@pytest.mark.parametrize("fault", EARLY)
async def test_what_breaks_early_counts_for_the_circuit(fault: str) -> None:
    world = World()
    world.streamed(0, *EARLY[fault])
    for number in range(8):
        await read((await opened(world, text=str(number))).value)
    neutral = fault in NEUTRAL
    assert (world.circuit(0), world.calls(0)) == ("closed" if neutral else "open", 1 if neutral else 3)


LATE: dict[str, tuple[Step, ...]] = {
    "cut": ([ROLE], [chunk("Good ")], [chunk("day")], CUT),
    "stalls": ([ROLE, chunk("Good ")], [chunk("day")], HANG),
    "ends without a finish reason": ([chunk("Good ")], [chunk("day")]),
    "a raw transport exception": ([chunk("Good "), chunk("day")], ConnectionResetError("10.0.0.1")),
}


@pytest.mark.parametrize("fault", LATE)
async def test_after_the_first_token_it_never_fails_over_and_says_how_much_was_sent(fault: str) -> None:
    world = World()
    world.streamed(0, *LATE[fault])
    for number in range(3):
        stream = (await opened(world, text=str(number))).value
        got: list[str] = []

        async def reading(stream: Stream = stream, got: list[str] = got) -> None:
            async with stream:
                async for batch in stream:
                    got.extend(one.text for one in batch)

        task = asyncio.ensure_future(reading())
        began = world.clock.monotonic()
        await world.clock.advance(2.1)
        with pytest.raises(StreamBroken) as broken:
            await task
        assert ("".join(got), broken.value.sent) == ("Good day", 8)
        assert broken.value.retry_after == 0, "another link may be tried at once"
        assert world.clock.monotonic() - began <= 2.2
    assert (world.calls(0), world.calls(1)) == (3, 0)
    assert world.circuit(0) == "open", "what breaks in the middle is the provider's failure as well"
    assert world.open_calls == world.places_taken == 0


async def test_a_stream_that_comes_slowly_is_no_failure() -> None:
    world = World()
    world.streamed(0, [ROLE], [chunk("Good ")], "wait", [chunk("day")], [chunk(finish="stop")])
    task = asyncio.ensure_future(read((await opened(world)).value))
    await world.clock.advance(1.9)  # less than the limit between chunks
    world.providers["openai"].go.set()
    await world.clock.advance(0)
    assert await task == "Good day"
    assert world.circuit(0) == "closed"


async def test_a_stream_without_end_is_ended() -> None:
    world = World()
    world.streamed(0, *[[chunk("x" * 100_000)]] * 60)
    with pytest.raises(StreamBroken):
        await read((await opened(world)).value)


async def test_a_bad_request_goes_straight_back() -> None:
    world = World()
    world.streamed(0, RequestRefused("no"))
    for number in range(4):
        with pytest.raises(RequestRefused):
            await opened(world, text=str(number))
    assert (world.calls(0), world.calls(1), world.circuit(0)) == (4, 0, "closed")


async def test_a_reader_that_leaves_cancels_the_call_and_is_neutral() -> None:
    world = World()
    world.streamed(0, [ROLE, chunk("Good ")], HANG)
    for number in range(5):
        async with (await opened(world, text=str(number))).value as stream:
            async for _ in stream:
                break
        await world.clock.advance(0)
        assert world.open_calls == world.places_taken == 0
    assert world.circuit(0) == "closed"
    assert {attempt.error for attempt in world.attempts} == {"cancelled"}


async def test_a_caller_that_is_cancelled_before_the_first_token_leaks_nothing() -> None:
    world = World()
    world.streamed(0, [ROLE], HANG)
    for number in range(5):
        task = asyncio.ensure_future(world.chain.stream(query(str(number))))
        await world.clock.advance(0.1)
        assert world.open_calls == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await world.clock.advance(0)
        assert world.open_calls == world.places_taken == 0
    assert world.circuit(0) == "closed"


async def test_a_stream_that_nobody_reads_is_given_up() -> None:
    world = World()
    world.streamed(0, [ROLE, chunk("Good ")], HANG)
    task = asyncio.ensure_future(world.chain.stream(query()))
    await world.clock.advance(0)
    stream = (await task).value
    stream.close()
    stream.close()
    await world.clock.advance(1.5)
    assert world.open_calls == world.places_taken == world.clock.pending == 0


async def test_identical_streams_share_one_call_even_when_it_has_begun() -> None:
    world = World()
    world.streamed(0, [ROLE, chunk("Good ")], "wait", [chunk("day")], [chunk(finish="stop")])
    first = await asyncio.gather(*(opened(world) for _ in range(20)))
    late = await opened(world)
    other = await opened(world, tenant="bob")
    assert world.calls(0) == 2, "one of each tenant's"
    leaving = first[0].value
    leaving.close()
    world.providers["openai"].go.set()
    texts = await asyncio.gather(*(read(one.value) for one in [*first[1:], late, other]))
    assert set(texts) == {"Good day"}
    assert world.open_calls == world.places_taken == 0


async def test_a_trial_is_one_stream_until_its_end() -> None:
    world = World()
    world.streamed(0, CUT)
    for number in range(3):
        await read((await opened(world, text=str(number))).value)
    await world.clock.advance(PROVIDERS.open_seconds)
    world.streamed(0, [ROLE, chunk("Good ")], "wait", [chunk("day")], [chunk(finish="stop")])
    trial = (await opened(world, text="trial")).value
    other = (await opened(world, text="other")).value
    assert (trial.provider, trial.fallback_from, other.fallback_from) == ("openai", "", "openai:gpt-4")
    await read(other)
    assert world.circuit(0) == "half-open"
    world.providers["openai"].go.set()
    assert await read(trial) == "Good day"
    assert world.circuit(0) == "closed"


async def test_a_whole_stream_is_kept_and_replayed_when_all_are_gone() -> None:
    world = World()
    first = (await opened(world)).value
    await read(first)
    for at in range(3):
        world.told(at, ProviderFailed("status 500"))
    await world.clock.advance(60.0)
    served = await opened(world)
    stream = served.value
    assert (stream.cached, stream.provider, stream.model, stream.fallback_from) == (
        True,
        "openai",
        "gpt-4",
        "openai:gpt-4",
    )
    assert served.as_of == stream.as_of == pytest.approx(world.clock.time() - 60, abs=2.5)
    assert [one.fallback for one in served.degradations] == [RESPONSE_CACHE]
    assert await read(stream) == stream.text == "Good day"
    assert (stream.finish_reason, stream.usage) == ("stop", Usage(7, 2))
    whole = await world.chain.complete(query())
    assert (whole.value.text, whole.value.cached) == ("Good day", True), "one entry serves both forms"
    with pytest.raises(AllProvidersGone):
        await opened(world, tenant="bob")


async def test_a_broken_stream_is_not_kept() -> None:
    world = World()
    world.streamed(0, [chunk("Good ")], CUT)
    with pytest.raises(StreamBroken):
        await read((await opened(world)).value)
    for at in range(3):
        world.told(at, ProviderFailed("status 500"))
    with pytest.raises(AllProvidersGone):
        await opened(world)


async def test_tool_calls_are_put_together() -> None:
    def part(index: int, arguments: str, **more: object) -> list[dict[str, object]]:
        return [{"index": index, "function": {"arguments": arguments, **more}, **({"id": "c1"} if more else {})}]

    world = World()
    world.streamed(
        0,
        [chunk(tool_calls=part(0, "", name="find"))],
        [chunk(tool_calls=part(0, '{"q"')), chunk(tool_calls=part(0, ": 1}"))],
        [chunk(finish="tool_calls")],
    )
    await read((await opened(world)).value)
    for at in range(3):
        world.told(at, ProviderFailed("status 500"))
    kept = await world.chain.complete(query())
    [call] = kept.value.message["tool_calls"]
    assert (call["id"], call["function"]) == ("c1", {"name": "find", "arguments": '{"q": 1}'})
    async with (await opened(world)).value as stream:
        chunks = [one async for batch in stream for one in batch]
    assert json.loads(chunks[0].data)["choices"][0]["delta"]["tool_calls"][0]["index"] == 0


@pytest.mark.parametrize("odd", [{"tool_calls": [3]}, {"tool_calls": [{"index": []}]}, {"content": "x", "index": 1}])
async def test_what_cannot_be_put_together_is_passed_on_and_not_kept(odd: dict[str, Any]) -> None:
    world = World()
    if "index" in odd:
        second = json.dumps({"model": "gpt-4", "choices": [{"index": 1, "delta": {"content": "x"}}]}).encode()
        steps: list[Step] = [[chunk("Good day")], [Chunk(second, "", commits=True)]]
    else:
        steps = [[chunk("Good day")], [chunk(**odd)]]
    world.streamed(0, *steps, [chunk(finish="stop")])
    assert await read((await opened(world)).value) == "Good day"
    for at in range(3):
        world.told(at, ProviderFailed("status 500"))
    with pytest.raises(AllProvidersGone):
        await opened(world)


async def test_a_refusal_is_kept_as_one() -> None:
    world = World()
    world.streamed(0, [ROLE], [replace(chunk(refusal="I would rather not."), text="I would rather not.", commits=True)])
    world.streamed(0, *world.providers["openai"].streams["gpt-4"], [chunk(finish="stop")])
    await read((await opened(world)).value)
    for at in range(3):
        world.told(at, ProviderFailed("status 500"))
    kept = (await world.chain.complete(query())).value
    assert (kept.message["refusal"], kept.message["content"]) == ("I would rather not.", None)


async def test_a_whole_answer_kept_is_streamed_too() -> None:
    world = World()
    await world.chain.complete(query())
    fresh = await opened(world, fresh_seconds=60.0)
    assert (fresh.value.cached, fresh.degradations, world.calls(0)) == (True, (), 1)
    assert await read(fresh.value) == completion("gpt-4").text


def test_the_steps_of_a_whole_stream_commit_once_only() -> None:
    batches = [step for step in WHOLE if not isinstance(step, str | Exception)]
    assert [any(one.commits for one in batch) for batch in batches] == [False, True, False]
