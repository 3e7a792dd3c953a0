"""Writes Prometheus's rules and their tests from the rows (make docs); `--check` fails when they are out of date.

The tests are promtool's: for each rule, series that make it fire and series that must not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from devstack.cli.matrix import rows
from resilience import Row
from tools import alerts
from tools.alerts import Alert
from tools.generated import ROOT, settle

PROMETHEUS = ROOT / "deploy/prometheus"
HEAD = "# Made by `make docs` from each service's degradation.py and tools/alerts.py; do not edit.\n"
EXAMPLES = {"ai_core.providers": "openai:gpt-4", "ai_core.speech": "elevenlabs"}
INSTANCE = "a:1"


@dataclass(frozen=True)
class Case:
    """What a rule sees, a sample a minute from minute 0, and in which minutes it fires."""

    alert: Alert
    series: Mapping[str, str]
    labels: Mapping[str, str]  # those that come from the series
    fires: tuple[int, ...]
    quiet: tuple[int, ...]
    value: str = ""  # as the annotations show it

    def expected(self, minute: int) -> list[dict[str, object]]:
        """The alert in that minute, or nothing."""
        shown = {name: self._filled(text) for name, text in self.alert.annotations.items()}
        return [{"exp_labels": self._labels(), "exp_annotations": shown}] if minute in self.fires else []

    def _labels(self) -> dict[str, str]:
        return {**self.labels, **{name: self._filled(text) for name, text in self.alert.labels.items()}}

    def _filled(self, text: str) -> str:
        for name, value in self.labels.items():
            text = text.replace(f"{{{{ $labels.{name} }}}}", value)
        for shown in ("$value", "$value | humanizeDuration", "$value | humanizePercentage"):
            text = text.replace(f"{{{{ {shown} }}}}", self.value)
        return text


def _test(*cases: Case) -> dict[str, object]:
    """Cases of one alert, for promtool: in each of their minutes those that fire do, and nothing else does."""
    alert, series = cases[0].alert.name, {name: values for case in cases for name, values in case.series.items()}
    minutes = sorted({minute for case in cases for minute in (*case.fires, *case.quiet)})
    return {
        "name": alert,
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {
                "eval_time": f"{minute}m",
                "alertname": alert,
                "exp_alerts": [found for case in cases for found in case.expected(minute)],
            }
            for minute in minutes
        ],
    }


def _row_case(row: Row) -> Case:
    """Open from minute 1, half-open in minute 3, closed from minute 9; another service's circuit is none of it."""
    labels = {
        "service": row.service,
        "dependency": EXAMPLES.get(row.id, row.dependency),
        "instance": INSTANCE,
    }
    series = {
        _series("circuit_breaker_state", **labels, state="open"): "0 1 1 0 1x4 0x6",
        _series("circuit_breaker_state", **labels, state="half_open"): "0 0 0 1 0x10",
        _series("circuit_breaker_state", **labels, state="closed"): "1 0x7 1x6",
        _series("circuit_breaker_state", **{**labels, "service": "another"}, state="open"): "1x14",
    }
    return Case(alerts.degraded(row), series, labels, fires=(7, 8, 9), quiet=(0, 5, 11))


def _fallback_case(alert: Alert, service: str, fallback: str) -> Case:
    """One instance's fallback fails 10 times a minute, another one's 5 times, which is below 0.1 a second."""
    shown = EXAMPLES["ai_core.providers"] if ":" in fallback else fallback
    labels = {"service": service, "fallback": shown, "instance": INSTANCE}
    series = {
        _series("fallback_errors_total", **labels): "0+10x12 120x20",
        _series("fallback_errors_total", **{**labels, "instance": "b:1"}): "0+5x32",
    }
    return Case(alert, series, labels, fires=(10,), quiet=(1, 20))


def _series(metric: str, **labels: str) -> str:
    found = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{metric}{{{found}}}"


def _platform_cases() -> Iterator[list[Case]]:
    rules = {alert.name: alert for alert in alerts.platform()}
    here = {"service": "dashboard", "instance": INSTANCE}
    queue = {"service": "dashboard"}
    jobs = [{"job": service, "instance": INSTANCE} for service in alerts.SERVICES]
    up = {_series("up", **job): "1 0x4 1x10" for job in jobs}
    yield [Case(rules["ServiceDown"], up, job, fires=(3,), quiet=(0, 1, 7)) for job in jobs]
    for alert in alerts.platform():
        if alert.name == "ServiceMissing":
            mine, others = {"job": alert.labels["service"]}, {}
            for job in jobs:
                others[_series("up", **job)] = "_x7 1x9" if job["job"] == mine["job"] else "1x20"
            yield [Case(alert, others, mine, fires=(3,), quiet=(0, 9))]
    emergency = _series("service_mode", **here, mode="emergency")
    yield [Case(rules["EmergencyMode"], {emergency: "0 1x4 0x9"}, here, (3, 5), (0, 8))]
    yield [Case(rules["ModeHeld"], {_series("service_mode_held", **here): "0 1x20 0x9"}, here, (17,), (10, 22))]
    yield [Case(rules["CircuitHeld"], {_series("circuit_breakers_held", **here): "0 2x20 0x9"}, here, (17,), (10, 22))]
    age = _series("fallback_queue_oldest_age_seconds", **here)
    yield [Case(rules["QueuedWritesWait"], {age: "0 301x4 0x9"}, queue, (3,), (0, 1, 7), "5m 1s")]
    yield [Case(rules["QueuedWritesExpire"], {age: "0 2881x4 0x9"}, queue, (1,), (0, 7))]
    dead = _series("fallback_queue_dead_total", **here)
    yield [Case(rules["DeadLetters"], {dead: "0 2x4 0x9"}, queue, (3,), (0, 1, 7), "2")]
    yield from _error_cases(rules)


def _error_cases(rules: Mapping[str, Alert]) -> Iterator[list[Case]]:
    job = {"job": "dashboard"}
    http = {**job, "http_request_method": "GET", "http_route": "/api/v1/rooms"}
    metric, status = "http_server_request_duration_seconds_count", "http_response_status_code"
    good = {_series(metric, **http, **{status: "200"}): "0+99x40"}
    # A probe that gets 503 while a service drains is no error, and one failure alone is out of the window in time.
    probe = {_series(metric, **{**http, "http_route": "/health/ready"}, **{status: "503"}): "0+99x40"}
    bad = _series(metric, **http, **{status: "503"})
    yield [Case(rules["ErrorRate"], {**good, **probe, bad: "0+1x20 20x20"}, job, (12,), (3, 30), "1%")]
    yield [Case(rules["ErrorRate"], {**good, **probe, bad: "0 0 1x38"}, job, (), (4, 6, 7, 8, 12))]
    call = {**job, "rpc_system_name": "grpc", "rpc_method": "auralink.ai.v1.AgentService/GetAgent"}
    metric, status = "rpc_server_call_duration_seconds_count", "rpc_response_status_code"
    calls = {
        _series(metric, **call, **{status: "OK"}): "0+98x40",
        _series(metric, **call, **{status: "NOT_FOUND"}): "0+1x40",
        _series(metric, **call, **{status: "UNAVAILABLE"}): "0+1x20 20x20",
    }
    yield [Case(rules["CallErrorRate"], calls, job, (12,), (3, 30), "1%")]
    kind = {**job, "error_type": "DATABASE_ERROR"}
    seen = "app_error_recovery_seconds_"
    slow = {
        _series(f"{seen}count", **kind): "0 0 1x40",
        _series(f"{seen}bucket", **kind, le="5.0"): "0x42",
    }
    fast = {series.replace("DATABASE_ERROR", "CIRCUIT_OPEN"): "0 0 1x40" for series in slow}
    yield [Case(rules["SlowRecovery"], {**slow, **fast}, kind, (3, 8), (1, 15))]


def _tests(cases: Iterable[list[Case]], *files: str) -> str:
    found = {
        "rule_files": [f"../rules/{file}" for file in files],
        "evaluation_interval": "1m",
        "tests": [_test(*together) for together in cases],
    }
    return _text(found)


def _text(data: object) -> str:
    return HEAD + str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120))


def documents() -> dict[Path, str]:
    """Every generated file by its path."""
    found = alerts.groups()
    ladders = alerts.ladders(rows()).items()
    by_row = [_row_case(row) for row in rows()]
    by_fallback = [_fallback_case(alerts.failing(*ladder, served), *ladder) for ladder, served in ladders]

    def rules(*names: str) -> str:
        return _text({"groups": [{"name": name, "rules": [one.data() for one in found[name]]} for name in names]})

    return {
        PROMETHEUS / "rules/rows.yml": rules("rows", "fallbacks"),
        PROMETHEUS / "rules/platform.yml": rules("platform"),
        PROMETHEUS / "tests/rows.yml": _tests([by_row, by_fallback], "rows.yml"),
        PROMETHEUS / "tests/platform.yml": _tests(_platform_cases(), "platform.yml"),
    }


if __name__ == "__main__":
    sys.exit(settle(documents()))
