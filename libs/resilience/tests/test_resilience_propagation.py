"""Deadlines on the wire: never longer than what the caller has left, and no garbage believed."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import Deadline, FakeClock, deadline_scope
from resilience.propagation import (
    DEADLINE_HEADER,
    GRPC_TIMEOUT,
    from_grpc_timeout,
    from_header,
    to_grpc_timeout,
    to_header,
)

UNITS: dict[str, Fraction] = {
    "H": Fraction(3_600),
    "M": Fraction(60),
    "S": Fraction(1),
    "m": Fraction(1, 10**3),
    "u": Fraction(1, 10**6),
    "n": Fraction(1, 10**9),
}
SECONDS = st.floats(min_value=0, max_value=1e15)


def test_the_names_are_part_of_the_protocol() -> None:
    assert (DEADLINE_HEADER, GRPC_TIMEOUT) == ("X-Request-Timeout-Ms", "grpc-timeout")


# -- HTTP


def test_the_header_carries_the_milliseconds_that_are_left() -> None:
    clock = FakeClock(start=0.0)
    deadline = Deadline(2.5)
    assert to_header(deadline, clock) == "2500"
    clock.move(1.0)
    assert to_header(deadline, clock) == "1500"
    clock.move(1.4999)
    assert to_header(deadline, clock) == "0"
    clock.move(100.0)
    assert to_header(deadline, clock) == "0"


def test_without_a_clock_the_real_one_is_used() -> None:
    with deadline_scope(3_600) as deadline:
        assert 3_500_000 < int(to_header(deadline)) <= 3_600_000


@given(SECONDS)
def test_the_header_never_gives_more_than_is_left_and_loses_less_than_a_millisecond(seconds: float) -> None:
    clock = FakeClock(start=0.0)
    text = to_header(Deadline(seconds), clock)
    assert text.isdigit()
    assert len(text) <= 10
    back = from_header(text)
    assert back is not None
    assert back <= seconds
    if seconds < 9_999_999:
        assert Fraction(int(text) + 1, 1_000) > Fraction(seconds)


@pytest.mark.parametrize("seconds", [1e7, 1e300, float("inf")])
def test_a_deadline_beyond_ten_digits_is_the_longest_that_can_be_written(seconds: float) -> None:
    assert to_header(Deadline(seconds), FakeClock(start=0.0)) == "9999999999"


@pytest.mark.parametrize(
    ("text", "seconds"), [("1500", 1.5), (" 7 ", 0.007), ("0", 0.0), ("9999999999", 9_999_999.999)]
)
def test_the_header_is_read_as_seconds(text: str, seconds: float) -> None:
    assert from_header(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "-1", "+1", "1.5", "1e3", "1_000", "soon", "٣", "²", "1 2", "10000000000", "9" * 5_000]
)
def test_a_garbled_header_is_no_deadline(text: str) -> None:
    assert from_header(text) is None


@given(st.text(max_size=20))
def test_no_text_makes_the_header_raise(text: str) -> None:
    seconds = from_header(text)
    assert seconds is None or 0 <= seconds < 10**7


# -- gRPC


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0n"),
        (-1.0, "0n"),
        (5e-10, "0n"),
        (0.25, "250000u"),
        (0.0625, "62500000n"),
        (1.0, "1000000u"),
        (0.3, "299999u"),  # the double is a little less than the decimal
        (100.0, "100000m"),
        (99_999.0, "99999000m"),
        (100_000.0, "100000S"),
        (99_999_999.0, "99999999S"),
        (100_000_000.0, "1666666M"),
        (6_000_000_000.0, "1666666H"),
        (359_999_996_400.0, "99999999H"),
        (1e300, "99999999H"),
        (float("inf"), "99999999H"),
    ],
)
def test_a_grpc_timeout_takes_the_finest_unit_that_fits(seconds: float, text: str) -> None:
    assert to_grpc_timeout(seconds) == text


def test_a_grpc_timeout_of_an_integer_works_too() -> None:
    assert to_grpc_timeout(3) == "3000000u"


@given(SECONDS)
def test_a_grpc_timeout_is_well_formed_and_never_rounded_up(seconds: float) -> None:
    text = to_grpc_timeout(seconds)
    digits, unit = text[:-1], UNITS[text[-1]]
    assert digits.isdigit()
    assert 1 <= len(digits) <= 8
    assert int(digits) * unit <= Fraction(seconds)
    back = from_grpc_timeout(text)
    assert back is not None
    assert back <= seconds


@given(st.floats(min_value=1e-3, max_value=359_000_000_000))
def test_a_grpc_timeout_loses_little(seconds: float) -> None:
    back = from_grpc_timeout(to_grpc_timeout(seconds))
    assert back is not None
    assert back >= seconds * (1 - 1e-4)
    if seconds < 99_999:
        assert back >= seconds - max(1e-3 if seconds >= 99.9 else 1e-6, 0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1H", 3_600.0),
        ("2M", 120.0),
        ("3S", 3.0),
        ("4m", 0.004),
        ("5u", 5e-6),
        ("6n", 6e-9),
        ("0n", 0.0),
        ("00000007S", 7.0),
    ],
)
def test_a_grpc_timeout_is_read_in_every_unit(text: str, seconds: float) -> None:
    assert from_grpc_timeout(text) == seconds
    assert from_grpc_timeout(f" {text} ") == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "S",
        "1",
        "123456789S",
        "1s",
        "1h",
        "1D",
        "-1S",
        "+1S",
        "1.5S",
        "1 S",
        "S1",
        "1SS",
        "٣S",
        "²S",
        "1e3S",
        "1_0S",
        " ",
    ],
)
def test_a_garbled_grpc_timeout_is_no_deadline(text: str) -> None:
    assert from_grpc_timeout(text) is None


@given(st.text(max_size=12))
def test_no_text_makes_the_grpc_timeout_raise(text: str) -> None:
    seconds = from_grpc_timeout(text)
    assert seconds is None or seconds >= 0


def test_what_is_not_a_number_cannot_be_written() -> None:
    with pytest.raises(ValueError):
        to_grpc_timeout(float("nan"))


def test_a_deadline_survives_two_hops_without_growing() -> None:
    clock = FakeClock(start=0.0)
    with deadline_scope(1.0, clock=clock) as first:
        text = to_header(first, clock)
    clock.move(0.25)  # on the way
    seconds = from_header(text)
    assert seconds is not None
    with deadline_scope(seconds, clock=clock) as second:
        clock.move(0.5)
        assert to_grpc_timeout(second.remaining(clock)) == "500000u"
