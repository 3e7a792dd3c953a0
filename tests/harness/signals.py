"""What a service says about itself: metrics, health page and log, read from outside like any operator would."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.harness.platform import Platform

UNAVAILABLE = ("CIRCUIT_OPEN", "DEPENDENCY_UNAVAILABLE", "DATABASE_ERROR")
"""Error codes of a dependency that is away."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """One scrape: samples by name and labels."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples of that name which have these labels (``from_`` stands for ``from``)."""
        wanted = {(key.rstrip("_"), value) for key, value in labels.items()}
        return sum(value for (known, having), value in self.samples.items() if known == name and wanted <= having)


async def metrics(platform: Platform, at: str = "dashboard") -> Metrics:
    """A service's metrics now."""
    answer = await platform.call("GET", "/metrics", at=at)
    assert answer.status == 200, answer
    families = text_string_to_metric_families(answer.body)
    samples = [sample for family in families for sample in family.samples]
    return Metrics({(one.name, frozenset(one.labels.items())): one.value for one in samples})


async def health(platform: Platform, label: str, at: str = "dashboard") -> Mapping[str, Any]:
    """The dependency of a row on the detailed health page, with the page's ``mode`` and its name in it."""
    page = (await platform.call("GET", "/health/detailed", at=at)).body
    found = [(name, one) for name, one in page["dependencies"].items() if one["label"] == label]
    assert len(found) == 1, f"{label} is not on the health page of {at}"
    return {"name": found[0][0], "mode": page["mode"], "page_status": page["status"], **found[0][1]}


class Log:
    """What a component logs from now on."""

    def __init__(self, platform: Platform, name: str = "dashboard") -> None:
        self._path = platform.stack.state.log(name)
        self._begin = self._path.stat().st_size

    def lines(self, event: str, **fields: str) -> list[dict[str, Any]]:
        """Lines of that event with these fields."""
        with self._path.open("rb") as file:
            file.seek(min(self._begin, self._path.stat().st_size))
            found = [_parsed(line) for line in file if event.encode() in line]
        return [one for one in found if one.get("event") == event and fields.items() <= one.items()]


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


@asynccontextmanager
async def signalled(
    platform: Platform, label: str, fallbacks: Sequence[str] = (), *, errors: bool = False
) -> AsyncIterator[None]:
    """What the first Dashboard says of itself about an outage in the body: a circuit that opened and closed again, in
    log and metrics; one of the fallbacks counted; ``errors``: errors counted."""
    log, before = Log(platform), await metrics(platform)
    yield
    after, row = await metrics(platform), await health(platform, label)
    transitions = [(line["old"], line["new"]) for line in log.lines("circuit changed", dependency=row["name"])]
    assert ("closed", "open") in transitions
    assert transitions[-1][1] == "closed"

    def grown(name: str, **labels: str) -> float:
        return after.total(name, **labels) - before.total(name, **labels)

    assert grown("circuit_breaker_transitions_total", dependency=row["name"], from_="closed", to="open") >= 1
    if fallbacks:
        assert sum(grown("fallback_activations_total", fallback=one) for one in fallbacks) > 0
    if errors:
        assert sum(grown("app_errors_total", error_type=one) for one in UNAVAILABLE) > 0


async def shown_open(platform: Platform, label: str, at: str = "dashboard") -> None:
    """While a row's circuit is open: health page and metrics say so."""
    row, seen = await health(platform, label, at), await metrics(platform, at)
    assert row["circuit"] in ("open", "half_open"), row
    assert row["status"] in ("degraded", "down"), row
    assert row["last_error"], row
    assert row["page_status"] in ("degraded", "emergency")
    assert row["mode"] != "normal"
    assert seen.total("circuit_breaker_state", dependency=row["name"], state="closed") == 0
    assert seen.total("circuit_breaker_state", dependency=row["name"]) == 1
