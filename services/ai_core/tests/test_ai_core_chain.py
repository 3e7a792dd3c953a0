"""The provider chain on a clock that stands still: order, failover, limits of time, circuits, rest, sharing, cache."""

import asyncio
from dataclasses import replace

import pytest

from ai_core import prices
from ai_core.degradation import ORIGINAL_TEXT, PROVIDERS, RESPONSE_CACHE
from ai_core.model import ModelNotOffered, RequestRefused, TooLong
from ai_core.ports import CannotCarry, ModelUnknown, ProviderBusy, ProviderFailed
from ai_core.query import Completion, Usage
from ai_core.usecases.chain import AllProvidersGone
from ai_core.usecases.failover import TABLE, Move, move_after, window
from ai_core.usecases.language import Language
from ai_core.usecases.rest import LONGEST_REST
from resilience import Prober, Rung, Served, deadline_scope
from services.ai_core.tests.chain_fakes import HANG, LINKS, Answer, World, completion, query

FAILURES: dict[str, Answer] = {
    "refused": ProviderFailed("ClientConnectorError"),
    "error": ProviderFailed("status 500"),
    "hang": HANG,
    "a raw transport exception": ConnectionResetError("10.0.0.1:443"),
    "a defect of the adapter": KeyError("choices"),
}
NEUTRAL: dict[str, Answer] = {
    "429": ProviderBusy("openai", None),
    "429 with Retry-After": ProviderBusy("openai", 20.0),
    "unknown model": ModelUnknown("gpt-4"),
    "cannot carry": CannotCarry("seed"),
}


async def served(world: World, **more: object) -> Served[Completion]:
    """Asks, moving time until there is an answer."""
    task = asyncio.ensure_future(world.chain.complete(query(**more)))  # type: ignore[arg-type]
    for _ in range(40):
        await world.clock.advance(0.05)
        if task.done():
            break
    return await task


@pytest.mark.parametrize("fault", [*FAILURES, *NEUTRAL])
@pytest.mark.parametrize("at", [0, 1])
async def test_the_next_link_answers_and_says_so(at: int, fault: str) -> None:
    world = World()
    for place in range(at + 1):
        world.told(place, {**FAILURES, **NEUTRAL}[fault])
    began = world.clock.monotonic()
    answer = await served(world)
    assert world.clock.monotonic() - began <= 1.5
    assert answer.value.text == f"answer of {LINKS[at + 1].model}"
    assert (answer.value.provider, answer.value.model) == (LINKS[at + 1].provider, LINKS[at + 1].model)
    assert answer.value.fallback_from == "openai:gpt-4"
    [degradation] = answer.degradations
    assert (degradation.row, degradation.fallback) == (PROVIDERS.id, LINKS[at + 1].name)
    assert [world.calls(place) for place in range(at + 2)] == [1] * (at + 2)
    assert world.places_taken == world.open_calls == 0


@pytest.mark.parametrize("fault", FAILURES)
async def test_a_dead_provider_gets_exactly_three_calls_until_the_next_trial(fault: str) -> None:
    world = World()
    world.told(0, FAILURES[fault])
    for number in range(20):
        await served(world, text=str(number))
    assert (world.calls(0), world.circuit(0)) == (3, "open")
    await world.clock.advance(PROVIDERS.open_seconds)
    await served(world, text="trial")
    assert world.calls(0) == 4
    world.told(0, lambda: completion("gpt-4"))
    await world.clock.advance(PROVIDERS.open_seconds)
    back = await served(world, text="again")
    assert (back.value.model, back.value.fallback_from, back.degradations) == ("gpt-4", "", ())
    assert world.circuit(0) == "closed"


async def test_one_caller_waits_for_a_hanging_provider_that_reopens() -> None:
    world = World()
    world.told(0, HANG)
    for number in range(3):
        await served(world, text=str(number))
    await world.clock.advance(PROVIDERS.open_seconds)
    callers = [asyncio.ensure_future(world.chain.complete(query(f"herd {number}"))) for number in range(32)]
    await world.clock.advance(0)
    assert sum(not caller.done() for caller in callers) == 1
    await world.clock.advance(1.0)
    assert all(caller.done() for caller in callers)
    assert world.calls(0) == 4


@pytest.mark.parametrize("fault", NEUTRAL)
async def test_these_concern_no_circuit(fault: str) -> None:
    world = World()
    world.told(0, NEUTRAL[fault])
    for number in range(10):
        await world.clock.advance(1.0)
        await served(world, text=str(number))
    assert world.circuit(0) == "closed"


async def test_retry_after_is_honoured_and_bounded() -> None:
    world = World()
    world.told(0, ProviderBusy("openai", 20.0))
    for number in range(5):
        await served(world, text=str(number))
    assert world.calls(0) == 1
    await world.clock.advance(20.0)
    await served(world, text="after")
    assert world.calls(0) == 2
    world.told(0, ProviderBusy("openai", 1e9))
    await world.clock.advance(20.0)
    await served(world, text="for ever")
    assert world.guarded[0].wait() == pytest.approx(LONGEST_REST, abs=0.1)


async def test_a_400_is_never_sent_on() -> None:
    world = World()
    world.told(0, RequestRefused("no"))
    for number in range(5):
        with pytest.raises(RequestRefused):
            await served(world, text=str(number))
    assert [world.calls(at) for at in range(3)] == [5, 0, 0]
    assert world.circuit(0) == "closed"


async def test_too_long_goes_on_to_larger_windows_only() -> None:
    world = World()
    world.told(0, TooLong("too long"))
    assert (await served(world)).value.model == "gpt-3.5-turbo"
    world.told(1, TooLong("too long"))
    assert (await served(world)).value.model == "claude-sonnet-5-5"
    # Claude has the largest: what is too long for it is not asked of a smaller one.
    world.told(2, TooLong("too long"))
    before = world.calls(0)
    with pytest.raises(TooLong):
        await served(world, prefer="claude-sonnet-5-5")
    assert world.calls(0) == before
    # A larger one that is only away could have taken it: that is no fault of the request.
    world.told(2, ProviderFailed("status 500"))
    with pytest.raises(AllProvidersGone):
        await served(world, text="long")


async def test_what_no_provider_can_carry_is_the_requests_fault() -> None:
    world = World()
    for at in range(3):
        world.told(at, CannotCarry("seed"))
    with pytest.raises(RequestRefused, match="seed"):
        await served(world)


def test_the_table_of_moves_is_complete() -> None:
    assert [kind for kind, _ in TABLE][-1] is Exception
    assert move_after(TooLong("x")) is Move.LARGER
    assert move_after(RequestRefused("x")) is move_after(ModelNotOffered()) is Move.BACK
    assert {move_after(error) for error in (ProviderFailed(), OSError(), TimeoutError())} == {Move.NEXT}
    assert [window(link) for link in LINKS] == [8_192, 16_385, 200_000]
    assert window(replace(LINKS[0], model="gpt-4o-2024-08-06")) == 128_000
    assert window(replace(LINKS[0], model="llama3")) == 0


async def test_a_preferred_model_comes_first() -> None:
    world = World()
    for prefer in ("claude-sonnet-5-5", "anthropic:claude-sonnet-5-5", "anthropic/claude-sonnet-5-5"):
        answer = await served(world, prefer=prefer)
        assert (answer.value.provider, answer.degradations) == ("anthropic", ())
    world.told(2, ProviderFailed("status 500"))
    answer = await served(world, prefer="claude-sonnet-5-5")
    assert (answer.value.model, answer.value.fallback_from) == ("gpt-4", "anthropic:claude-sonnet-5-5")
    with pytest.raises(ModelNotOffered):
        await served(world, prefer="gpt-7")


async def test_all_gone_within_the_time_with_a_true_retry_after() -> None:
    world = World()
    for at in range(3):
        world.told(at, HANG)
    began = world.clock.monotonic()
    with deadline_scope(1.8, clock=world.clock), pytest.raises(AllProvidersGone):
        await served(world)
    assert world.clock.monotonic() - began <= 1.8
    for at in range(3):
        world.told(at, ProviderFailed("status 500"))
    for number in range(4):
        with pytest.raises(AllProvidersGone):
            await served(world, text=str(number))
    assert [world.circuit(at) for at in range(3)] == ["open"] * 3
    await world.clock.advance(10.0)
    with pytest.raises(AllProvidersGone) as gone:
        await served(world, text="later")
    assert 15.0 <= gone.value.retry_after <= 20.0
    assert gone.value.retry_after == pytest.approx(world.chain.retry_after(), abs=0.1)


async def test_retry_after_is_the_soonest_of_rests_and_circuits() -> None:
    world = World()
    for at, seconds in enumerate((40.0, 7.0, 90.0)):
        world.told(at, ProviderBusy("openai", seconds))
    with pytest.raises(AllProvidersGone) as gone:
        await served(world)
    assert gone.value.retry_after == pytest.approx(7.0)


async def test_a_chain_without_links_says_that_it_is_gone() -> None:
    world = World()
    world.chain._links = ()
    with pytest.raises(AllProvidersGone):
        await served(world, prefer="gpt-4")


async def test_no_place_free_is_no_reason_to_wait() -> None:
    world = World(places=1)
    world.providers["openai"].slow = True
    first = asyncio.ensure_future(world.chain.complete(query("first")))
    await world.clock.advance(0)
    second = asyncio.ensure_future(world.chain.complete(query("second")))
    await world.clock.advance(0)
    third = await world.chain.complete(query("third"))
    assert third.value.provider == "anthropic"
    world.providers["openai"].go.set()
    assert (await first).value.model == "gpt-4"
    assert (await second).value.model == "gpt-3.5-turbo"
    assert world.circuit(0) == "closed"


async def test_a_hundred_identical_queries_are_one_call() -> None:
    world = World()
    world.providers["openai"].slow = True
    callers = [asyncio.ensure_future(world.chain.complete(query())) for _ in range(100)]
    other = asyncio.ensure_future(world.chain.complete(query(tenant="bob")))
    await world.clock.advance(0.1)
    world.providers["openai"].go.set()
    await world.clock.advance(0.1)
    answers = [await caller for caller in callers]
    assert world.calls(0) == 2, "one of each tenant's"
    assert len({answer.value.text for answer in answers}) == 1
    assert (await other).value.text == answers[0].value.text
    again = await served(world)
    assert (world.calls(0), again.value.cached) == (3, False), "what is over is not shared"


async def test_a_cancelled_leader_harms_nobody_and_leaks_nothing() -> None:
    world = World()
    world.providers["openai"].slow = True
    leader, *followers = [asyncio.ensure_future(world.chain.complete(query())) for _ in range(3)]
    await world.clock.advance(0.1)
    leader.cancel()
    await world.clock.advance(0.1)
    world.providers["openai"].go.set()
    await world.clock.advance(0.1)
    assert [(await follower).value.model for follower in followers] == ["gpt-4", "gpt-4"]
    assert world.calls(0) == 1


async def test_when_all_callers_have_gone_the_call_is_cancelled_and_neutral() -> None:
    world = World()
    world.told(0, HANG)
    for number in range(5):
        callers = [asyncio.ensure_future(world.chain.complete(query(str(number)))) for _ in range(2)]
        await world.clock.advance(0.1)
        assert world.open_calls == 1
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        await world.clock.advance(0)
        assert world.open_calls == world.places_taken == 0
    assert world.circuit(0) == "closed"
    assert world.calls(0) == 5


async def test_who_shared_a_failure_and_has_time_tries_again() -> None:
    world = World()
    for at in range(3):
        world.told(at, HANG)

    async def ask(seconds: float) -> str:
        with deadline_scope(seconds, clock=world.clock):
            return (await world.chain.complete(query())).value.text

    hurried, patient = asyncio.ensure_future(ask(0.3)), asyncio.ensure_future(ask(20.0))
    await world.clock.advance(0.2)
    for at in range(3):
        world.told(at, lambda: completion("gpt-4"))
    await world.clock.advance(0.4)
    with pytest.raises(AllProvidersGone):
        await hurried
    assert await patient == "answer of gpt-4"


async def test_the_kept_answer_serves_only_the_identical_query_when_all_are_gone() -> None:
    world = World()
    first = await served(world)
    await world.clock.advance(120.0)
    live = await served(world)
    assert (live.value.cached, world.calls(0)) == (False, 2), (
        "while a provider answers, nothing is served from the cache"
    )
    for at in range(3):
        world.told(at, ProviderFailed("status 500"))
    await world.clock.advance(60.0)
    kept = await served(world)
    assert (kept.value.text, kept.value.cached, kept.value.fallback_from) == (first.value.text, True, "openai:gpt-4")
    assert kept.as_of == kept.value.as_of == pytest.approx(world.clock.time() - 60.0, abs=1.0)
    assert [one.fallback for one in kept.degradations] == [RESPONSE_CACHE]
    for different in ({"tenant": "bob"}, {"text": "hello"}, {"parameters": {"temperature": 0}}, {"agent": "a"}):
        with pytest.raises(AllProvidersGone):
            await served(world, **different)


async def test_what_is_not_whole_or_not_to_be_kept_is_not_kept() -> None:
    world = World()
    world.told(0, lambda: completion("gpt-4", finish_reason="length"))
    await served(world)
    world.told(0, lambda: completion("gpt-4"))
    await served(world, text="secret", keep=False)
    for at in range(3):
        world.told(at, ProviderFailed("status 500"))
    for text in ("Hello", "secret"):
        with pytest.raises(AllProvidersGone):
            await served(world, text=text)


async def test_a_fresh_answer_is_served_without_a_call_when_the_caller_allows_it() -> None:
    world = World()
    await served(world)
    await world.clock.advance(30.0)
    fresh = await served(world, fresh_seconds=60.0)
    assert (fresh.value.cached, fresh.degradations, world.calls(0)) == (True, (), 1)
    assert fresh.as_of == pytest.approx(world.clock.time() - 30.0, abs=1.0)
    await world.clock.advance(31.0)
    assert (await served(world, fresh_seconds=60.0)).value.cached is False
    assert world.calls(0) == 2


async def test_rungs_serve_last() -> None:
    world = World()
    for at in range(3):
        world.told(at, ProviderFailed("status 500"))
    rung = Rung[Completion](ORIGINAL_TEXT, lambda _: completion("none", "", "as it came"))
    answer = await world.chain.complete(query(), rung)
    assert (answer.value.text, [one.fallback for one in answer.degradations]) == ("as it came", [ORIGINAL_TEXT])


async def test_translation_is_the_original_text_when_all_are_gone() -> None:
    world = World()
    language = Language(world.chain)
    good = await language.translate("alice", "Good morning", "de", "en")
    assert (good.value.translated, good.value.provider, good.degradations) == (True, "openai", ())
    for at in range(3):
        world.told(at, ProviderFailed("status 500"))
    bad = await language.translate("alice", "Good night", "de")
    assert (bad.value.text, bad.value.translated, bad.value.provider) == ("Good night", False, "")
    assert [one.fallback for one in bad.degradations] == [ORIGINAL_TEXT]
    kept = await language.translate("alice", "Good morning", "de", "en")
    assert (kept.value.translated, [one.fallback for one in kept.degradations]) == (True, [RESPONSE_CACHE])


async def test_what_an_attempt_was_is_told_and_what_it_cost() -> None:
    world = World()
    world.told(0, ProviderFailed("status 500"))
    answer = await served(world)
    failed, good = world.attempts
    assert (failed.link.model, failed.error) == ("gpt-4", "ProviderFailed")
    assert (good.link.model, good.error, good.usage, good.finish_reason) == ("gpt-3.5-turbo", "", Usage(10, 5), "stop")
    assert answer.value.cost == good.cost == pytest.approx((10 * 0.5 + 5 * 1.5) / 1e6)
    assert prices.cost("gpt-4o-mini-2024-07-18", Usage(1_000_000, 0)) == 0.15
    assert prices.cost("a-model-of-ones-own", Usage(1, 1)) is None
    assert prices.cost("gpt-4", Usage()) is None


async def test_a_link_is_back_when_a_short_call_succeeds_not_when_its_list_of_models_does() -> None:
    world = World()
    link, openai = world.guarded[0], world.providers["openai"]
    prober = Prober(link.policy, openai.ping, trial=link.trial, clock=world.clock)
    task = asyncio.ensure_future(prober.run())
    await world.clock.advance(0)
    world.told(0, ProviderFailed("status 500"))
    for number in range(3):
        await served(world, text=str(number))
    assert world.circuit(0) == "open"
    await world.clock.advance(25.0)
    tried = world.calls(0) - 3
    assert 2 <= tried <= 5, "the list answers, so it is tried, at growing intervals"
    world.told(0, lambda: completion("gpt-4"))
    await world.clock.advance(17.0)
    assert world.circuit(0) == "closed"
    task.cancel()


@pytest.mark.parametrize("ping", [ProviderFailed("away"), HANG])
async def test_a_provider_that_cannot_be_reached_is_not_tried_and_found_soon(ping: Exception | str) -> None:
    world = World()
    link, openai = world.guarded[0], world.providers["openai"]
    task = asyncio.ensure_future(Prober(link.policy, openai.ping, trial=link.trial, clock=world.clock).run())
    await world.clock.advance(0)
    openai.pings = ping
    world.told(0, ProviderFailed("away"))
    for number in range(3):
        await served(world, text=str(number))
    await world.clock.advance(25.0)
    assert world.calls(0) == 3
    openai.pings = ""
    world.told(0, lambda: completion("gpt-4"))
    await world.clock.advance(3.5)
    assert world.circuit(0) == "closed"
    task.cancel()


async def test_a_trial_that_is_told_to_wait_waits() -> None:
    world = World()
    link, openai = world.guarded[0], world.providers["openai"]
    task = asyncio.ensure_future(Prober(link.policy, openai.ping, trial=link.trial, clock=world.clock).run())
    await world.clock.advance(0)
    world.told(0, ProviderFailed("status 500"))
    for number in range(3):
        await served(world, text=str(number))
    world.told(0, ProviderBusy("openai", 60.0))
    await world.clock.advance(40.0)
    assert world.calls(0) == 4, "the trial was asked to wait, and so it does"
    world.told(0, lambda: completion("gpt-4"))
    await world.clock.advance(30.0)
    assert world.circuit(0) == "closed"
    task.cancel()


async def test_an_operator_can_take_a_link_out_and_put_it_back() -> None:
    world = World()
    world.guarded[0].policy.breaker.force_open()
    assert (await served(world)).value.model == "gpt-3.5-turbo"
    for at in (1, 2):
        world.guarded[at].policy.breaker.force_open()
    with pytest.raises(AllProvidersGone) as gone:
        await served(world, text="x")
    assert 0 < gone.value.retry_after < 60
    assert [world.calls(at) for at in range(3)] == [0, 1, 0]
    world.guarded[0].policy.breaker.reset()
    assert (await served(world, text="y")).value.model == "gpt-4"
