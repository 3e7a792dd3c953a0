"""No promise without proof: every row of the matrix has a chaos test, a runbook, and its line in the document."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ai_core.degradation
import dashboard.degradation
import webrtc.degradation
from resilience import Row

ROOT = Path(__file__).parents[2]
ROWS = (*dashboard.degradation.ROWS, *ai_core.degradation.ROWS, *webrtc.degradation.ROWS)
MARKED = re.compile(r'mark\.row\("(\w+)"\)')


@pytest.fixture(scope="module")
def proven() -> set[str]:
    """Labels of the rows that some chaos test says it proves."""
    return {label for path in (ROOT / "tests/chaos").glob("test_*.py") for label in MARKED.findall(path.read_text())}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_row(row: Row, proven: set[str]) -> None:
    assert row.label in proven, f"mark its chaos test with @pytest.mark.row({row.label!r})"
    runbook = ROOT / "docs/runbooks" / f"{row.id}.md"
    assert row.id in runbook.read_text()
    assert f"{row.label} `{row.id}`" in (ROOT / "docs/degradation-matrix.md").read_text()


def test_ids_and_labels_are_unique() -> None:
    assert len({row.id for row in ROWS}) == len({row.label for row in ROWS}) == len(ROWS)
