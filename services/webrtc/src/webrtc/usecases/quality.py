"""How good a participant's connection is, scored from what its client measures.

The rule is the E-model of ITU-T G.107 (06/2015) with default values for everything that a connection does not decide:

    R = 93.2 - Id - Ie,eff

* ``Id``, delay: ``0.024 d + 0.11 (d - 177.3) H(d - 177.3)``, the approximation of Cole and Rosenbluth ("Voice over IP
  Performance Monitoring", ACM SIGCOMM CCR 31(2), 2001). ``d``, one way in ms: half the round trip, twice
  the jitter (what a receiver has to buffer), and 20 ms for one packet of sound.
* ``Ie,eff``, loss: ``Ie + (95 - Ie) Ppl / (Ppl + Bpl)``, G.107's effective equipment impairment for random loss, with
  ``Ie`` 0 and ``Bpl`` 25.1, the values of G.113 (appendix I) for G.711 with concealment of lost packets.

The categories are those of G.109, two each: R of 80 and more (best, high: users are satisfied) is excellent; 60 and
more (medium, low: some or many are not) good; anything less (nearly all are not) poor. Nothing arriving is lost.

One report proves little (the share lost jumps between 0 and a half at a steady 15 %): the last ``WINDOW`` seconds
count, by the mean of what was lost and the median of the times.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean, median

from webrtc.model import Report

WINDOW = 10.0
"""Seconds."""
MOST_REPORTS = 32
"""Of one window, from a client that reports more often than it should."""
MOST_PATHS = 100
EXCELLENT, GOOD, POOR, LOST = "excellent", "good", "poor", "lost"
BEST = 93.2
"""R of a perfect connection."""
NOTHING_ARRIVES = 0.95
"""The share lost from which a connection is as good as none."""

Heard = Callable[[str, float], None]
"""Told of each report: the quality and R after it."""


def rating(rtt_ms: float, loss: float, jitter_ms: float) -> float:
    """R of the E-model, 0 to 93.2, for a round trip and a jitter in milliseconds and a share lost of 0 to 1."""
    delay = rtt_ms / 2 + 2 * jitter_ms + 20
    delayed = 0.024 * delay + 0.11 * max(0.0, delay - 177.3)
    percent = 100 * loss
    return max(0.0, BEST - delayed - 95 * percent / (percent + 25.1))


def label(r: float, loss: float) -> str:
    """The category of a rating."""
    if loss >= NOTHING_ARRIVES:
        return LOST
    return EXCELLENT if r >= 80 else GOOD if r >= 60 else POOR


class Meter:
    """One participant's connection; see ports.QualityMeter."""

    def __init__(self, heard: Heard = lambda _quality, _r: None) -> None:
        self._heard = heard
        self._recent: deque[tuple[float, Report]] = deque(maxlen=MOST_REPORTS)
        self._paths: dict[str, bool] = {}
        self._whole = _Sums()

    def add(self, report: Report, now: float) -> str:
        """See the port."""
        self._recent.append((now, report))
        while now - self._recent[0][0] > WINDOW:
            self._recent.popleft()
        loss = fmean(one.loss for _, one in self._recent)
        r = rating(self._middle("rtt_ms"), loss, self._middle("jitter_ms"))
        quality = LOST if self._unreachable else label(r, loss)
        self._whole.add(report, quality)
        self._heard(quality, 0.0 if quality == LOST else r)
        return quality

    def path(self, peer: str, state: str, relayed: bool) -> None:  # noqa: ARG002 - reports say that as well
        """See the port. Who has no path left is lost, whatever its last figures were."""
        if peer in self._paths or len(self._paths) < MOST_PATHS:
            self._paths[peer] = state == "connected"

    def summary(self) -> Mapping[str, object]:
        """See the port; empty when there was no report."""
        return self._whole.summary()

    @property
    def _unreachable(self) -> bool:
        return bool(self._paths) and not any(self._paths.values())

    def _middle(self, figure: str) -> float:
        return median(float(getattr(report, figure)) for _, report in self._recent)


class _Sums:
    """A whole call in a few numbers."""

    def __init__(self) -> None:
        self._count = 0
        self._relayed = 0
        self._rtt = self._loss = self._jitter = self._bitrate = 0.0
        self._seen = dict.fromkeys((EXCELLENT, GOOD, POOR, LOST), 0)

    def add(self, report: Report, quality: str) -> None:
        self._count += 1
        self._relayed += report.relayed
        self._rtt += report.rtt_ms
        self._loss += report.loss
        self._jitter += report.jitter_ms
        self._bitrate += report.bitrate_kbps
        self._seen[quality] += 1

    def summary(self) -> dict[str, object]:
        if not (count := self._count):
            return {}
        rtt, loss, jitter = self._rtt / count, self._loss / count, self._jitter / count
        r = rating(rtt, loss, jitter)
        return {
            "label": label(r, loss),
            "r": round(r, 1),
            "rtt_ms": round(rtt, 1),
            "loss": round(loss, 4),
            "jitter_ms": round(jitter, 1),
            "bitrate_kbps": round(self._bitrate / count),
            "relayed": round(self._relayed / count, 2),
            "reports": count,
            "shares": {quality: round(seen / count, 2) for quality, seen in self._seen.items() if seen},
        }


def together(summaries: Iterable[Mapping[str, object]]) -> dict[str, object] | None:
    """A call's quality: the mean of its participants' ratings, and the worst of their labels."""
    known = [one for one in summaries if one.get("label")]
    if not known:
        return None
    ratings = [float(str(one.get("r", 0.0))) for one in known]
    worst = max(known, key=lambda one: (EXCELLENT, GOOD, POOR, LOST).index(str(one["label"])))
    return {"label": worst["label"], "r": round(fmean(ratings), 1)}
