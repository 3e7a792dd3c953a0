"""Retry-After in both of its forms, found on other people's errors without ever raising."""

import urllib.error
from datetime import UTC, datetime
from email.message import Message
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import FakeClock
from resilience.errors import CircuitBreakerOpen, RateLimited, TransientError
from resilience.retry_after import MAX_RETRY_AFTER, parse_retry_after, retry_after_of

NOW = datetime(1994, 11, 6, 8, 49, 7, tzinfo=UTC).timestamp()


class Answer(Exception):
    """An error with the answer's headers, as HTTP clients raise it."""

    def __init__(self, headers: Any, own: Any = None) -> None:
        self.response = SimpleNamespace(headers=headers)
        self.headers = own


# -- the text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("120", 120.0), (" 120 ", 120.0), ("0", 0.0), ("007", 7.0), ("1.5", 1.5), (".5", 0.5), ("5.", 5.0)],
)
def test_a_number_is_seconds(text: str, seconds: float) -> None:
    assert parse_retry_after(text, NOW) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",  # RFC 9110's own examples of the three forms
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Sun, 06 Nov 1994 09:49:37 +0100",
    ],
)
def test_retry_after_as_a_date(text: str) -> None:
    assert parse_retry_after(text, NOW) == 30.0


def test_a_date_that_has_passed_asks_for_no_wait() -> None:
    assert parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT", NOW + 31) == 0.0
    assert parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT", NOW + 30) == 0.0


@pytest.mark.parametrize("text", ["86401", "9" * 400, "9" * 100_000, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_it_is_never_longer_than_a_day(text: str) -> None:
    assert parse_retry_after(text, NOW) == MAX_RETRY_AFTER == 86_400.0


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "-1", "-0", "+5", "1e3", "0x10", "1_000", "1.2.3", ".", "nan", "inf", "soon", "٣", "²", "12 34"),
        *("Sun, 99 Nov 1994 08:49:37 GMT", "Sun, 06 Foo 1994 08:49:37 GMT", "Sun, 06 Nov 1994 28:49:37 GMT", "GMT"),
        *("Sun, 06 Nov 1994 08:49:37 GMT" + " " * 36 + "x", "x" * 10_000),
    ],
)
def test_garbage_asks_for_nothing(text: str) -> None:
    assert parse_retry_after(text, NOW) is None


@given(st.integers(0, 2 * 86_400))
def test_every_whole_number_of_seconds_comes_through_in_both_forms(seconds: int) -> None:
    expected = min(seconds, MAX_RETRY_AFTER)
    date = format_datetime(datetime.fromtimestamp(NOW + seconds, UTC), usegmt=True)
    assert parse_retry_after(str(seconds), NOW) == expected
    assert parse_retry_after(date, NOW) == expected


@given(st.text(max_size=80), st.floats(allow_nan=False, allow_infinity=False))
def test_no_text_raises_or_exceeds_the_bound(text: str, now: float) -> None:
    seconds = parse_retry_after(text, now)
    assert seconds is None or 0.0 <= seconds <= MAX_RETRY_AFTER


# -- the attribute


def test_our_own_errors_say_how_long() -> None:
    assert retry_after_of(TransientError(retry_after=2.5)) == 2.5
    assert retry_after_of(RateLimited("x", 3.0)) == 3.0
    assert retry_after_of(CircuitBreakerOpen("x", 0.0)) == 0.0
    assert retry_after_of(TransientError()) is None
    assert retry_after_of(ValueError()) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *((3, 3.0), (0, 0.0), (1e9, MAX_RETRY_AFTER), (float("inf"), MAX_RETRY_AFTER), ("7", 7.0)),
        *((-1, None), (float("nan"), None), (True, None), ("soon", None), ([], None), (lambda: 3, None)),
    ],
)
def test_only_a_sensible_attribute_counts(value: object, seconds: float | None) -> None:
    error = Exception()
    error.retry_after = value  # type: ignore[attr-defined]
    found = retry_after_of(error)
    assert found == seconds
    assert found is None or type(found) is float


def test_an_attribute_may_hold_a_date() -> None:
    clock = FakeClock(wall=NOW)
    error = Exception()
    error.retry_after = "Sun, 06 Nov 1994 08:49:37 GMT"  # type: ignore[attr-defined]
    assert retry_after_of(error, clock=clock) == 30.0


# -- the headers


@pytest.mark.parametrize("name", ["Retry-After", "retry-after", "RETRY-AFTER"])
@pytest.mark.parametrize("shape", [dict, lambda pairs: pairs, tuple, iter])
def test_the_header_is_found_whatever_its_case_and_container(name: str, shape: Any) -> None:
    pairs = [("Content-Length", "0"), (name, "5")]
    assert retry_after_of(Answer(shape(pairs))) == 5.0
    assert retry_after_of(Answer(None, own=shape(pairs))) == 5.0


def test_raw_headers_in_bytes_are_read() -> None:
    assert retry_after_of(Answer([(b"Retry-After", b"5")])) == 5.0


def test_the_first_of_two_headers_counts() -> None:
    assert retry_after_of(Answer([("Retry-After", "5"), ("Retry-After", "9")])) == 5.0


def test_the_headers_of_urllib_are_read() -> None:
    headers = Message()
    headers["Retry-After"] = "11"
    error = urllib.error.HTTPError("http://x", 503, "", headers, None)
    try:
        assert retry_after_of(error) == 11.0
    finally:
        error.close()


def test_milliseconds_are_preferred_as_they_are_more_exact() -> None:
    assert retry_after_of(Answer({"Retry-After": "2", "Retry-After-Ms": "1250"})) == 1.25
    assert retry_after_of(Answer({"Retry-After": "2", "Retry-After-Ms": "soon"})) == 2.0
    assert retry_after_of(Answer({"Retry-After-Ms": "9" * 20})) == MAX_RETRY_AFTER


def test_the_attribute_comes_before_the_answers_headers_and_these_before_the_errors() -> None:
    error = Answer({"Retry-After": "2"}, own={"Retry-After": "3"})
    assert retry_after_of(error) == 2.0
    error.retry_after = 1  # type: ignore[attr-defined]
    assert retry_after_of(error) == 1.0
    assert retry_after_of(Answer({}, own={"Retry-After": "3"})) == 3.0


def test_a_date_is_held_against_the_answers_own_date_so_that_no_two_clocks_are_compared() -> None:
    clock = FakeClock(wall=NOW - 3_600)
    headers = {"Date": "Sun, 06 Nov 1994 08:49:07 GMT", "Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}
    assert retry_after_of(Answer(headers), clock=clock) == 30.0
    clock.jump_wall(7_200)
    assert retry_after_of(Answer(headers), clock=clock) == 30.0


@pytest.mark.parametrize("date", [None, "yesterday"])
def test_without_a_date_of_the_answer_the_wall_clock_is_read(date: str | None) -> None:
    headers = {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}
    if date is not None:
        headers["Date"] = date
    assert retry_after_of(Answer(headers), clock=FakeClock(wall=NOW)) == 30.0


def test_a_number_does_not_depend_on_any_date() -> None:
    headers = {"Date": "Sun, 06 Nov 1994 08:49:07 GMT", "Retry-After": "5"}
    assert retry_after_of(Answer(headers), clock=FakeClock(wall=0)) == 5.0


# -- strange errors


class Hostile(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class Endless:
    """Headers without end."""

    def items(self) -> Any:
        while True:
            yield "x", "y"


class Raising:
    def items(self) -> Any:
        raise KeyError


class BadText:
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "headers",
    [
        *(
            "text",
            5,
            [1, 2],
            [("a",)],
            object(),
            Endless(),
            Raising(),
            {"retry-after": BadText()},
            {"retry-after": None},
        ),
        {},
    ],
)
def test_headers_that_cannot_be_read_ask_for_nothing(headers: Any) -> None:
    assert retry_after_of(Answer(headers)) is None
    assert retry_after_of(Answer(headers, own={"Retry-After": "4"})) == 4.0


def test_an_error_whose_attributes_raise_asks_for_nothing() -> None:
    assert retry_after_of(Hostile()) is None


def test_a_clock_that_fails_costs_the_wait_and_not_the_error() -> None:
    stopped: Any = SimpleNamespace(time=[].pop)
    headers = {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}
    assert retry_after_of(Answer(headers), clock=stopped) is None


@given(
    st.one_of(st.none(), st.text(), st.binary(), st.integers(), st.floats(), st.lists(st.tuples(st.text(), st.text())))
)
def test_no_value_raises_or_exceeds_the_bound(value: Any) -> None:
    error = Answer(value, own={"retry-after": value})
    error.retry_after = value  # type: ignore[attr-defined]
    seconds = retry_after_of(error)
    assert seconds is None or 0.0 <= seconds <= MAX_RETRY_AFTER
