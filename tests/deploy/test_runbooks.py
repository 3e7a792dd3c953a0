"""A runbook is read at night: each has the same parts, and its commands name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ai_core.degradation
import dashboard.degradation
import webrtc.degradation
from resilience import Row
from tests.deploy.test_k8s import named

ROOT = Path(__file__).parents[2]
ROWS = (*dashboard.degradation.ROWS, *ai_core.degradation.ROWS, *webrtc.degradation.ROWS)
PARTS = ("**Symptom.**", "**What users see.**", "## How to look", "## What to do", "## How it heals", "## By hand")
SCALED = re.compile(r"scale (deployment|statefulset)/([a-z-]+) --replicas=0")
KINDS = {"deployment": "Deployment", "statefulset": "StatefulSet"}


def documents() -> list[Path]:
    return [*ROOT.glob("docs/runbooks/*.md"), *ROOT.glob("docs/operations/*.md"), ROOT / "deploy/k8s/README.md"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_runbook_has_all_its_parts(row: Row) -> None:
    text = (ROOT / "docs/runbooks" / f"{row.id}.md").read_text()
    assert text.startswith(f"# {row.label} `{row.id}`: ")
    places = [text.find(part) for part in PARTS]
    assert -1 not in places, PARTS[places.index(-1)]
    assert places == sorted(places)
    assert "/admin/circuit-breaker/" in text
    assert "auralink chaos" in text[places[-1] :] or "DROP EXTENSION" in text[places[-1] :]


def test_what_is_scaled_to_nothing_is_there() -> None:
    found = {match for path in documents() for match in SCALED.findall(path.read_text())}
    assert len(found) >= 5
    for kind, name in found:
        assert named("development", KINDS[kind], name)


def test_links_between_documents_lead_somewhere() -> None:
    for path in documents():
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
