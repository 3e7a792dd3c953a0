"""What a service says about itself: metrics, health page and log, read from outside like any operator would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.harness.platform import Platform


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
