"""The live page's feed: who is told what, doubles, resuming, slow readers, and the mode that switches it off."""

from __future__ import annotations

import asyncio

import pytest

from dashboard.degradation import EFFECTS, ROWS
from dashboard.inbound.http.gate import Gate
from dashboard.model import LiveUpdatesOff, TooManyStreams
from dashboard.usecases import live
from dashboard.usecases.live import LiveEvent, LiveFeed, Stream
from resilience import Mode
from service_kit.errors import DependencyUnavailable


def event(id: str, kind: str = "circuit", audience: frozenset[str] | None = None) -> LiveEvent:
    return LiveEvent(id, kind, {"n": id}, audience)


async def told(stream: Stream) -> list[str]:
    """Ids of what waits for the reader."""
    found = []
    while (one := await stream.next(0.001)) is not None:
        found.append(one.id)
    return found


async def test_everybody_hears_of_circuits_and_only_those_concerned_of_rooms() -> None:
    feed = LiveFeed()
    anna, ben = feed.open("anna"), feed.open("ben")
    feed.publish(event("1"))
    feed.publish(event("2", "room", frozenset({"anna"})))
    feed.publish(event("3", "room", frozenset()))
    assert await told(anna) == ["1", "2"]
    assert await told(ben) == ["1"]


async def test_a_double_is_told_once() -> None:
    feed = LiveFeed()
    stream = feed.open("anna")
    for _ in range(2):
        feed.publish(event("1"))
    assert await told(stream) == ["1"]


async def test_the_memory_for_doubles_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_SEEN", 3)
    feed = LiveFeed()
    for number in range(10):
        feed.publish(event(str(number)))
    assert len(feed._seen) == 3


async def test_a_reader_that_comes_back_is_told_what_it_missed_and_may_see() -> None:
    feed = LiveFeed()
    for id, audience in (("1", None), ("2", frozenset({"ben"})), ("3", frozenset({"anna"})), ("4", None)):
        feed.publish(event(id, audience=audience))
    assert await told(feed.open("anna", "1")) == ["3", "4"]
    assert await told(feed.open("anna", "gone")) == []
    assert await told(feed.open("anna")) == []


async def test_a_reader_that_is_too_slow_is_dropped() -> None:
    feed = LiveFeed()
    stream = feed.open("anna")
    for number in range(live.QUEUE + 1):
        feed.publish(event(str(number)))
    assert len(feed) == 0
    for number in range(live.QUEUE):
        got = await stream.next(0.001)
        assert got is not None
        assert got.id == str(number)
    with pytest.raises(StopAsyncIteration):
        await stream.next(0.001)


async def test_a_waiting_reader_is_woken() -> None:
    feed = LiveFeed()
    stream = feed.open("anna")
    waiting = asyncio.create_task(stream.next(5))
    await asyncio.sleep(0)
    feed.publish(event("1"))
    got = await waiting
    assert got is not None
    assert got.id == "1"


async def test_streams_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_STREAMS", 1)
    feed = LiveFeed()
    first = feed.open("anna")
    with pytest.raises(TooManyStreams):
        feed.open("ben")
    first.end()
    feed.open("ben")


async def test_switched_off_they_hear_the_last_word_and_end() -> None:
    feed = LiveFeed()
    stream = feed.open("anna")
    feed.publish(event("emergency", "mode"))
    feed.switch(False)
    got = await stream.next(1)
    assert got is not None
    assert got.id == "emergency"
    with pytest.raises(StopAsyncIteration):
        await stream.next(1)
    with pytest.raises(LiveUpdatesOff):
        feed.open("anna")
    feed.switch(True)
    feed.open("anna")


class _Request:
    def __init__(self, method: str) -> None:
        self.method = method


@pytest.mark.parametrize("mode", list(Mode))
async def test_the_gate_lets_writes_pass_unless_in_emergency(mode: Mode) -> None:
    gate = Gate(lambda: EFFECTS[mode], lambda: 7.0)
    await gate(_Request("GET"))  # type: ignore[arg-type]
    if mode is Mode.EMERGENCY:
        with pytest.raises(DependencyUnavailable) as refused:
            await gate(_Request("POST"))  # type: ignore[arg-type]
        assert (refused.value.retry_after, refused.value.queued) == (7.0, False)
    else:
        await gate(_Request("POST"))  # type: ignore[arg-type]


def test_every_mode_has_its_effects_and_every_row_a_promise() -> None:
    assert set(EFFECTS) == set(Mode)
    assert [row.label for row in ROWS] == ["D1", "D2", "D3", "D4", "D5", "D6"]
