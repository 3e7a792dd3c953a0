"""Events reach every listener, in spite of every other listener."""

import pytest

from resilience import CallFinished, Event, Events

EVENT = CallFinished("d.db", "db", "success", 0.1)


def test_every_listener_is_told() -> None:
    events, first, second = Events(), list[Event](), list[Event]()
    assert not events
    events.subscribe(first.append)
    stop = events.subscribe(second.append)
    assert events
    events.emit(EVENT)
    stop()
    events.emit(EVENT)
    assert (len(first), len(second)) == (2, 1)


def test_a_raising_listener_is_counted_and_hurts_nobody() -> None:
    events, seen = Events(), list[Event]()

    def broken(_event: Event) -> None:
        raise RuntimeError("bug")

    events.subscribe(broken)
    events.subscribe(seen.append)
    events.emit(EVENT)
    assert seen == [EVENT]
    assert events.listener_errors == 1


def test_listeners_are_bounded() -> None:
    events = Events()
    for _ in range(Events.MAX_LISTENERS):
        events.subscribe(lambda _event: None)
    with pytest.raises(RuntimeError, match="100 event listeners"):
        events.subscribe(lambda _event: None)
