"""The score of a connection: known values of the E-model, the window, and the summary of a whole call."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webrtc.model import Report
from webrtc.usecases.quality import BEST, Meter, label, rating, together

FINE = Report(40, 0.0, 3, 500)


@pytest.mark.parametrize(
    ("rtt_ms", "loss", "jitter_ms", "r"),
    [
        (0, 0, 0, 92.7),  # 93.2 - 0.024 * 20
        (260, 0, 0, 89.6),  # 150 ms one way, G.114's limit for most conversations
        (760, 0, 0, 59.1),  # 400 ms one way, G.114's limit for any: 93.2 - 9.6 - 24.5
        (0, 0.01, 0, 89.1),  # 95 * 1 / 26.1 = 3.6
        (0, 0.05, 0, 76.9),  # 95 * 5 / 30.1 = 15.8
        (0, 0.15, 0, 57.2),  # 95 * 15 / 40.1 = 35.5
        (0, 1.0, 0, 16.8),
    ],
)
def test_known_values(rtt_ms: float, loss: float, jitter_ms: float, r: float) -> None:
    assert rating(rtt_ms, loss, jitter_ms) == pytest.approx(r, abs=0.1)


@pytest.mark.parametrize(
    ("r", "loss", "quality"),
    [
        (BEST, 0, "excellent"),
        (80, 0, "excellent"),
        (79.9, 0, "good"),
        (60, 0, "good"),
        (59.9, 0, "poor"),
        (17, 1, "lost"),
    ],
)
def test_categories(r: float, loss: float, quality: str) -> None:
    assert label(r, loss) == quality


@given(st.floats(0, 5_000), st.floats(0, 1), st.floats(0, 500), st.sampled_from(["rtt", "loss", "jitter"]))
def test_a_worse_figure_never_scores_better(rtt: float, loss: float, jitter: float, worse: str) -> None:
    before = rating(rtt, loss, jitter)
    after = rating(
        rtt + 50 * (worse == "rtt"), min(1, loss + 0.05 * (worse == "loss")), jitter + 5 * (worse == "jitter")
    )
    assert 0 <= after <= before <= BEST


def test_one_bad_sample_is_not_a_bad_connection() -> None:
    meter = Meter()
    for second in range(0, 10, 2):
        assert meter.add(FINE, second) == "excellent"
    assert meter.add(Report(900, 0.0, 80, 500), 10) == "excellent", "a single spike"
    assert meter.add(Report(40, 0.5, 3, 500), 12) == "good"


def test_steady_loss_scores_steadily() -> None:
    """As Chromium reports 15 %: samples between 0 and a half."""
    meter, dice = Meter(), random.Random(1)
    scores = [meter.add(Report(40, dice.choice([0.0, 0.05, 0.1, 0.25, 0.35]), 5, 500), 2.0 * n) for n in range(30)]
    assert set(scores[5:]) <= {"poor", "good"}
    assert scores[5:].count("poor") > 15


def test_what_is_past_counts_no_more() -> None:
    meter = Meter()
    for second in range(0, 10, 2):
        meter.add(Report(40, 0.4, 3, 500), second)
    for second in range(12, 22, 2):
        meter.add(FINE, second)
    assert meter.add(FINE, 24) == "excellent"


def test_nothing_arrives() -> None:
    meter = Meter()
    assert meter.add(Report(40, 1.0, 0, 0), 0) == "lost"


def test_without_a_path_it_is_lost_until_one_is_back() -> None:
    meter = Meter()
    meter.path("p_1", "connected", False)
    meter.path("p_2", "failed", False)
    assert meter.add(FINE, 0) == "excellent"
    meter.path("p_1", "failed", False)
    assert meter.add(FINE, 2) == "lost"
    meter.path("sfu", "connected", False)
    assert meter.add(FINE, 4) == "excellent"


def test_the_summary_of_a_call() -> None:
    meter = Meter()
    assert meter.summary() == {}
    for second in range(8):
        meter.add(FINE, second * 2)
    for second in range(8, 16):
        meter.add(Report(40, 0.3, 3, 300, relayed=True), second * 2)
    found = meter.summary()
    assert (found["label"], found["reports"], found["relayed"]) == ("poor", 16, 0.5)
    assert (found["rtt_ms"], found["loss"], found["bitrate_kbps"]) == (40.0, 0.15, 400)
    assert set(found["shares"]) == {"excellent", "good", "poor"}  # type: ignore[call-overload]


def test_memory_is_bounded() -> None:
    meter = Meter()
    for n in range(10_000):
        meter.add(FINE, n / 1000)
        meter.path(f"p_{n}", "connected", False)
    assert len(meter._recent) <= 32
    assert len(meter._paths) <= 100


def test_listeners_hear_each_score() -> None:
    heard: list[tuple[str, float]] = []
    Meter(lambda quality, r: heard.append((quality, r))).add(FINE, 0)
    [(quality, r)] = heard
    assert quality == "excellent"
    assert r == pytest.approx(92.0, abs=1)


def test_a_calls_quality_is_its_worst_participants() -> None:
    assert together([]) is None
    assert together([{}, {"label": "good", "r": 70.0}, {"label": "excellent", "r": 90.0}]) == {
        "label": "good",
        "r": 80.0,
    }
