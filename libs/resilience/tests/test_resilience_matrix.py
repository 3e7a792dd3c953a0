"""Rows as data: checked when declared, printed as a table, dumped as JSON."""

import json
from dataclasses import replace

import pytest

from resilience import Priority, Row, as_json, markdown

ROW = Row(
    id="dashboard.postgres",
    label="D1",
    service="dashboard",
    dependency="postgres",
    title="PostgreSQL",
    priority=Priority.P0,
    impact="critical",
    max_failures=5,
    open_seconds=60.0,
    call_timeout=1.0,
    fallbacks=("redis-cache", "memory-cache"),
    promise="old | copy",
    recovery="queue drained",
    data_loss="low",
    user_text="Data may be outdated",
)


def test_the_table_has_one_line_per_row() -> None:
    header, rule, line = markdown([ROW]).splitlines()
    assert header.startswith("| row | dependency |")
    assert rule.count("---") == header.count(" | ") + 1
    assert line == (
        "| D1 `dashboard.postgres` | PostgreSQL | P0 critical | 5 / 60 s | redis-cache → memory-cache "
        "| old \\| copy | queue drained | low |"
    )


def test_a_row_without_fallback_says_so() -> None:
    assert "| none |" in markdown([replace(ROW, fallbacks=())])


def test_rows_are_plain_data() -> None:
    (row,) = json.loads(json.dumps(as_json([ROW])))
    assert row["id"] == "dashboard.postgres"
    assert row["priority"] == "P0"
    assert row["fallbacks"] == ["redis-cache", "memory-cache"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("label", ""), ("max_failures", 0), ("open_seconds", -1.0), ("call_timeout", 0.0), ("probe_interval", 0.0)],
)
def test_a_bad_row_fails_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        replace(ROW, **{field: value})  # type: ignore[arg-type]
