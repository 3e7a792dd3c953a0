"""The checker finds what it is there to find: one planted violation per promise, and none in a good history."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tests.harness.checker import Database, Outage, Row, check, made_once, served
from tests.harness.history import Event, Outcome, writes_of

USER = "u1"
OUTAGE = Outage(start=10.0, noticed=12.0, healing=30.0, over=32.0)
LABEL = {"x-degraded-mode": "true", "x-fallback-used": "redis-cache", "x-circuit-state": "open", "age": "3"}
QUEUED = {
    "queued": True,
    "operation_id": "op2",
    "status_url": "/api/v1/operations/op2",
    "error": "DEPENDENCY_UNAVAILABLE",
    "message": "saved",
}
BEFORE = Database({USER: Row("old", 1)}, {"op0": None}, {USER: 0})
AFTER = Database({USER: Row("two", 3)}, {"op0": None, "op1": None, "op2": None}, {USER: 2})


def event(kind: str, at: float, status: int | None = 200, **fields: Any) -> Event:
    """An event of the only user, a tenth of a second long."""
    return Event(kind, fields.pop("instance", "a"), at, fields.pop("end", at + 0.1), status, USER, **fields)


def queued(at: float, name: str = "two", status: int = 503, operation_id: str = "op2") -> Event:
    """A write that was queued."""
    retry = {"retry-after": "1", "x-retry-after": "1", "preference-applied": "respond-async"}
    body = {**QUEUED, "operation_id": operation_id}
    return event("write", at, status, name=name, headers={**LABEL, **retry}, body=body)


def stale(at: float, name: str = "one") -> Event:
    """A read that a copy served."""
    return event("read", at, name=name, headers=LABEL, body={"display_name": name, "stale": True, "as_of": "then"})


RETRY = {"retry-after": "1", "x-retry-after": "1"}
GONE = {"error": "DEPENDENCY_UNAVAILABLE", "message": "Try later."}

GOOD = [
    event("write", 1.0, name="one"),
    event("read", 2.0, name="one"),
    stale(15.0),
    queued(16.0),
    stale(17.0, "two"),
    event("operation", 18.0),
    event("read", 40.0, name="two"),
]


def rules(events: list[Event], before: Database = BEFORE, after: Database = AFTER) -> set[str]:
    return {violation.rule for violation in check(events, before, after, [OUTAGE])}


def test_a_good_history_has_no_violations() -> None:
    assert rules(GOOD) == set()


@pytest.mark.parametrize(
    ("planted", "rule"),
    [
        (event("read", 3.0, None, error="ServerDisconnected"), "answered"),
        (event("read", 3.0, 500), "answered"),
        (event("write", 3.0, 504, name="lost"), "answered"),
        (event("read", 15.0, 503), "served"),
        (event("write", 15.0, 429, name="no"), "served"),
        (event("login", 15.0, 503), "served"),
        (event("read", 2.0, end=4.9, name="one"), "in time"),
        (event("read", 15.0, name="one"), "labelled"),
        (stale(40.0, "two"), "labelled"),
        (replace(stale(15.0), headers={}), "labelled"),
        (replace(stale(15.0), body={"display_name": "one"}), "labelled"),
        (replace(stale(15.0), headers={**LABEL, "x-fallback-used": ""}), "labelled"),
        (event("read", 41.0, name="one"), "read your writes"),
        (stale(17.0, "one"), "read your writes"),
        (event("login", 15.0), "labelled"),
        (event("read", 3.0, name="one", headers={"x-fallback-used": "redis-cache"}), "labelled"),
        (event("room", 3.0, headers=LABEL), "labelled"),
        (event("room", 3.0, 503, headers=RETRY, body=GONE), "served"),
        (event("room", 15.0, 429, headers=RETRY, body=GONE), "served"),
        (event("chat", 15.0, 503, body=GONE), "labelled"),
        (event("chat", 15.0, 429, headers=RETRY, body={**GONE, "error": "CIRCUIT_OPEN"}), "labelled"),
        (event("chat", 3.0, 503, headers=RETRY, body=GONE), "served"),
        (event("chat", 3.0, 401), "answered"),
        (event("translate", 3.0, body={"translated": False}), "labelled"),
        (event("health", 15.0, 503), "served"),
        (event("chat_stream", 3.0, body={"ended": ""}), "ended"),
        (event("chat_stream", 3.0, body={"ended": "delta"}), "ended"),
        (event("chat_stream", 3.0, body={"ended": "error"}), "served"),
        (event("chat_stream", 3.0, body={"ended": "end", "degraded": True, "fallbacks": ["redis-queue"]}), "labelled"),
        (event("chat_stream", 15.0, headers=LABEL, body={"ended": "end", "degraded": False}), "labelled"),
        (event("speech", 3.0, body={"spoken": False}), "labelled"),
        (event("speech", 15.0, headers=LABEL, body={"spoken": False}), "labelled"),
        (event("pricing", 15.0, 503, headers=RETRY, body=GONE), "served"),
    ],
)
def test_a_planted_event_is_found(planted: Event, rule: str) -> None:
    assert rule in rules([*GOOD, planted])


def test_an_error_is_no_violation_where_nothing_better_is_promised() -> None:
    assert rules([*GOOD, event("search", 15.0, 503, headers=RETRY, body=GONE)]) == set()


def test_a_stream_is_in_time_when_it_begins_in_time_and_may_break_off_with_what_breaks() -> None:
    outage = replace(OUTAGE, component="providers", noticed=math.inf)
    broken = event("chat_stream", 9.5, end=20.0, begun=9.6, body={"ended": "error"})
    assert not check(
        [*GOOD[:2], broken], BEFORE, replace(AFTER, users={USER: Row("one", 2)}, changes={USER: 1}), [outage]
    )
    late = replace(broken, begun=13.0)
    assert "in time" in rules([*GOOD, late])


def test_two_outages_at_once_may_take_more() -> None:
    refused = event("login", 15.0, 503, headers=RETRY, body=GONE)
    assert rules([*GOOD, refused]) == {"served"}
    both = [OUTAGE, replace(OUTAGE, component="redis", noticed=29.0)]
    assert not list(served([refused], both))


def test_a_circuit_that_never_opened_needs_no_label() -> None:
    unseen = replace(OUTAGE, noticed=math.inf)
    assert not [one for one in check(GOOD, BEFORE, AFTER, [unseen]) if one.rule == "labelled"]


@pytest.mark.parametrize(
    ("status", "count", "well"),
    [(201, 1, True), (202, 1, True), (201, 0, False), (201, 2, False), (503, 0, True), (503, 1, True), (503, 2, False),
     (429, 0, True), (429, 1, False)],
)  # fmt: skip
def test_what_is_made_is_made_once(status: int, count: int, well: bool) -> None:
    made = event("new_agent", 3.0, status, name="a")
    after = replace(AFTER, made={"new_agent": {"a": count}})
    assert [one.rule for one in made_once([made], after)] == ([] if well else ["made once"])


@pytest.mark.parametrize(("start", "rules"), [(20.0, []), (40.0, ["made once"])])
def test_a_room_in_memory_is_lost_with_its_process_until_redis_is_back(start: float, rules: list[str]) -> None:
    made = event("new_room", 15.0, 201, name="a", headers={**LABEL, "x-fallback-used": "memory-rooms"})
    outages = [replace(OUTAGE, component="redis"), replace(OUTAGE, start=start, over=start + 5, component="webrtc")]
    after = replace(AFTER, made={"new_room": {}})
    assert [one.rule for one in made_once([made], after, outages)] == rules


def test_what_nobody_counts_is_not_judged() -> None:
    assert not list(made_once([event("new_memory", 3.0, 201, name="a")], AFTER))


@pytest.mark.parametrize(
    ("after", "rule"),
    [
        (replace(AFTER, users={USER: Row("two", 2)}, changes={USER: 1}), "applied once"),
        (replace(AFTER, users={USER: Row("two", 4)}, changes={USER: 3}), "applied once"),
        (replace(AFTER, users={USER: Row("two", 3)}, changes={USER: 3}), "applied once"),
        (replace(AFTER, operations={"op0": None}), "applied once"),
        (replace(AFTER, operations={"op0": None, "op2": "NOT_FOUND"}), "no dead letters"),
        (replace(AFTER, users={USER: Row("one", 3)}), "in order"),
        (replace(AFTER, users={USER: Row("old", 3)}), "in order"),
    ],
)
def test_a_wrong_database_is_found(after: Database, rule: str) -> None:
    assert rule in rules(GOOD, after=after)


def test_a_refused_write_must_not_take_effect() -> None:
    refused = event("write", 20.0, 503, name="three", body={"queued": False})
    assert refused.outcome() is Outcome.FAIL
    applied = Database({USER: Row("three", 4)}, AFTER.operations, {USER: 3})
    assert {"applied once", "in order"} <= rules([*GOOD, refused], after=applied)


@pytest.mark.parametrize("effect", [False, True])
def test_an_unknown_write_may_or_may_not_take_effect(effect: bool) -> None:
    lost = event("write", 20.0, 504, name="three")
    after = Database({USER: Row("three", 4)}, AFTER.operations, {USER: 3}) if effect else AFTER
    history = [one for one in GOOD if one.start < 20.0]
    assert not {"applied once", "in order"} & rules([*history, lost], after=after)


def test_attempts_under_one_key_are_one_write() -> None:
    (write,) = writes_of([event("write", 1.0, 504, name="x"), queued(2.0, "x"), event("write", 3.0, name="x")])
    assert (write.outcome, write.start, write.end, write.operation_id) == (Outcome.OK, 1.0, 3.1, "op2")


def test_another_instance_may_show_a_queued_write_a_little_later() -> None:
    elsewhere = replace(stale(17.0, "one"), instance="b")
    assert rules([*GOOD, elsewhere]) == set()
    assert rules([*GOOD, replace(elsewhere, start=18.0, end=18.1)]) == {"read your writes"}


def test_an_instance_that_was_cut_off_before_it_could_hear_is_not_blamed_until_redis_is_back() -> None:
    deaf = Outage(start=16.5, noticed=17.0, healing=19.0, over=20.0, component="redis")
    elsewhere = replace(stale(18.0, "one"), instance="b")
    late = replace(elsewhere, start=21.0, end=21.1)
    for read, expected in (
        (elsewhere, set()),
        (late, {"read your writes"}),
        (stale(18.0, "one"), {"read your writes"}),
    ):
        found = {one.rule for one in check([*GOOD, read], BEFORE, AFTER, [OUTAGE, deaf])}
        assert found == expected, read
