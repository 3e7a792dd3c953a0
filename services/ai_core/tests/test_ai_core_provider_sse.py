"""Server-sent events are the same however the network cuts them; limits are read in all the forms that they have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_core.outbound.providers.limits import exhausted, retry_after
from ai_core.outbound.providers.sse import EventTooLong, Splitter

NOW = 1_700_000_000.0
STREAM = (
    '\ufeff: comment\n\ndata: {"a": "é😀"}\n\nevent: message\ndata: one\ndata:two\nid: 7\n\n'
    "data\n\ndata:\n\n\n\nevent: ping\n\nretry: 10\ndata: [DONE]\n\ndata: never ended"
).encode()
EVENTS = [(b"", '{"a": "é😀"}'.encode()), (b"message", b"one\ntwo"), (b"", b"[DONE]")]


def split(data: bytes, cuts: list[int]) -> list[tuple[bytes, bytes]]:
    splitter, places = Splitter(), sorted({cut % (len(data) + 1) for cut in cuts})
    ends = [*places, len(data)]
    return [event for start, end in zip([0, *places], ends, strict=True) for event in splitter.feed(data[start:end])]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
@given(cuts=st.lists(st.integers(min_value=0, max_value=400), max_size=40))
def test_events_do_not_depend_on_the_networks_cuts(ending: bytes, cuts: list[int]) -> None:
    # A lone carriage return that ends the data waits for a possible line feed; what is never ended is never given.
    assert split(STREAM.replace(b"\n", ending), cuts) == EVENTS


def test_every_byte_by_itself() -> None:
    assert split(STREAM.replace(b"\n", b"\r\n"), list(range(400))) == EVENTS


def test_an_event_is_bounded() -> None:
    splitter = Splitter(limit=10)
    assert splitter.feed(b"data: 1234") == []
    with pytest.raises(EventTooLong):
        splitter.feed(b"5")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("20", 20.0),
        ("0.5", 0.5),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("2023-11-14T22:13:50Z", 30.0),
        ("Tue, 14 Nov 2023 22:13:00 GMT", None),
        ("-1", None),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after({"Retry-After": value}, NOW) == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("6m0s", 360.0), ("20ms", 0.02), ("1h2m3.5s", 3723.5), ("1.5", 1.5), ("0s", None), ("6x", None), ("", None)],
)
def test_resets_of_openai_are_durations(value: str, seconds: float | None) -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": value}
    assert exhausted(headers, NOW) == (pytest.approx(seconds) if seconds else None)
    assert exhausted({**headers, "x-ratelimit-remaining-requests": "1"}, NOW) is None


def test_the_last_exhausted_limit_counts() -> None:
    headers = {
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:30Z",
        "anthropic-ratelimit-output-tokens-remaining": "0",
        "anthropic-ratelimit-output-tokens-reset": "2023-11-14T22:14:20+00:00",
        "anthropic-ratelimit-input-tokens-remaining": "5",
        "anthropic-ratelimit-input-tokens-reset": "2023-11-14T23:00:00Z",
    }
    assert exhausted(headers, NOW) == 60.0
    assert retry_after(headers, NOW) == 60.0
    assert retry_after({**headers, "retry-after": "", "retry-after-ms": "250"}, NOW) == 0.25
