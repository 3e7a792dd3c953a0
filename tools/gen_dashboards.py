"""Writes Grafana's dashboards (make docs): the platform, the matrix, one for each service. `--check` compares.

Made from the rows, so that a new row is on the matrix without anybody drawing it. Colours mean the same everywhere:
green is normal or closed, yellow degraded or half-open, red emergency or open.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devstack.cli.matrix import rows
from tools.alerts import SERVICES, matcher
from tools.generated import ROOT, settle

FOLDER = ROOT / "deploy/grafana/dashboards"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH = 24  # Grafana's grid
TITLES = {"dashboard": "Dashboard", "ai-core": "AI Core", "webrtc": "WebRTC"}
GREEN, YELLOW, RED = "green", "yellow", "red"
CIRCUIT = {0: ("closed", GREEN), 1: ("half-open", YELLOW), 2: ("open", RED)}
MODE = {0: ("normal", GREEN), 1: ("degraded", YELLOW), 2: ("emergency", RED)}
WINDOW = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """One picture. ``queries``: legend and expression; ``states``: what the values 0, 1 and 2 mean."""

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    wide: int = 12
    high: int = 8
    text: str = ""
    states: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    red_from: float | None = None

    def data(self, number: int, x: int, y: int) -> dict[str, Any]:
        """As Grafana imports it."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.text,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.wide, "h": self.high},
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": OPTIONS.get(self.kind, {}),
            "targets": [
                {"refId": _letter(place), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
                for place, (legend, expr) in enumerate(self.queries.items())
            ],
        }

    def _defaults(self) -> dict[str, Any]:
        steps: list[dict[str, Any]] = [{"color": GREEN, "value": None}]
        if self.red_from is not None:
            steps.append({"color": RED, "value": self.red_from})
        shown = {str(value): {"text": text, "color": color} for value, (text, color) in self.states.items()}
        return {
            "unit": self.unit,
            "min": 0,
            "thresholds": {"mode": "absolute", "steps": steps},
            "mappings": [{"type": "value", "options": shown}] if shown else [],
        }


OPTIONS: Mapping[str, dict[str, Any]] = {
    "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    "stat": {"colorMode": "background", "graphMode": "none", "reduceOptions": {"calcs": ["lastNotNull"]}},
    "state-timeline": {"mergeValues": True, "showValue": "never", "rowHeight": 0.8},
}


def _letter(place: int) -> str:
    return chr(ord("A") + place)


def _state(metric: str, selector: str, by: str, values: Sequence[str]) -> str:
    """The place of the state in ``values``, 0 for the first: the worst of all instances."""
    label = "state" if metric == "circuit_breaker_state" else "mode"
    parts = [
        f'{place} * max by ({by}) ({metric}{{{selector}{label}="{value}"}})'
        for place, value in enumerate(values)
        if place
    ]
    return f"clamp_max({' + '.join(parts)}, {len(values) - 1})"


def _mode(selector: str = "") -> str:
    return _state("service_mode", selector, "service", ("normal", "degraded", "emergency"))


def timeline(service: str) -> Panel:
    """Every row of a service over time."""
    queries = {
        f"{row.label} {row.title}" + (" {{dependency}}" if "each" in row.title else ""): _state(
            "circuit_breaker_state", f"{matcher(row)},", "dependency", ("closed", "half_open", "open")
        )
        for row in rows()
        if row.service == service
    }
    return Panel(
        f"{TITLES[service]}: circuits",
        queries,
        kind="state-timeline",
        wide=WIDTH,
        high=2 + 2 * len(queries),
        states=CIRCUIT,
        text="The worst of all instances. Runbooks: docs/runbooks/.",
    )


def _rate(metric: str, by: str, selector: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{selector}}}{WINDOW}))"


def _quantile(metric: str, by: str, selector: str = "", share: float = 0.95) -> str:
    return f"histogram_quantile({share}, sum by ({by}, le) (rate({metric}_bucket{{{selector}}}{WINDOW})))"


_SERVED = 'http_route!~"/health/.*|/metrics"'
_HTTP, _RPC = "http_server_request_duration_seconds", "rpc_server_call_duration_seconds"


def _failed_share() -> str:
    failed = _rate(f"{_HTTP}_count", "job", _SERVED + ',http_response_status_code=~"5.."')
    return f"{failed} / {_rate(f'{_HTTP}_count', 'job', _SERVED)}"


def platform() -> Iterator[Panel]:
    """Whether all is well, on one page."""
    by = "{{service}}"
    yield Panel("Mode", {by: _mode()}, kind="stat", wide=8, high=4, states=MODE)
    degraded = 'sum(max by (service, dependency) (circuit_breaker_state{state!="closed"})) or vector(0)'
    yield Panel("Circuits not closed", {"circuits": degraded}, kind="stat", wide=4, high=4, red_from=1)
    firing = 'count(ALERTS{alertstate="firing"}) or vector(0)'
    yield Panel("Alerts", {"firing": firing}, kind="stat", wide=4, high=4, red_from=1)
    oldest = "max(fallback_queue_oldest_age_seconds) or vector(0)"
    yield Panel("Oldest queued write", {"age": oldest}, "s", "stat", 4, 4, red_from=300)
    dead = "sum(max by (service) (fallback_queue_dead_total)) or vector(0)"
    yield Panel("Dead letters", {"writes": dead}, kind="stat", wide=4, high=4, red_from=1)
    yield Panel("Mode over time", {by: _mode()}, kind="state-timeline", wide=WIDTH, high=5, states=MODE)
    yield Panel("Requests", {"{{job}}": _rate(f"{_HTTP}_count", "job", _SERVED)}, "reqps")
    yield Panel("Failed answers (5xx)", {"{{job}}": _failed_share()}, "percentunit", red_from=0.005)
    yield Panel("Latency, p95", {"{{job}}": _quantile(_HTTP, "job", _SERVED)}, "s")
    yield Panel("Calls between services, p95", {"{{job}}": _quantile(_RPC, "job")}, "s")
    used = _rate("fallback_activations_total", "service, fallback")
    yield Panel("Answers by a fallback", {"{{service}} {{fallback}}": used}, "ops")
    failed = _rate("fallback_errors_total", "service, fallback")
    yield Panel("Fallbacks that failed", {"{{service}} {{fallback}}": failed}, "ops", red_from=0.1)
    yield Panel("Writes waiting", {by: "max by (service) (fallback_queue_depth)"})
    recovery = _quantile("app_error_recovery_seconds", "job")
    yield Panel("Recovery from errors, p95", {"{{job}}": recovery}, "s", red_from=5)


def matrix() -> Iterator[Panel]:
    """What every row's circuit did, and what stood in for it."""
    yield from map(timeline, SERVICES)
    changes = _rate("circuit_breaker_transitions_total", "service, dependency, to")
    yield Panel("Changes of circuits", {"{{service}} {{dependency}} → {{to}}": changes}, "ops")
    spent = "sum by (service) (rate(degraded_mode_duration_seconds[5m]))"
    yield Panel("Share of the time outside of normal mode", {"{{service}}": spent}, "percentunit")
    held = "max by (service) (circuit_breakers_held)"
    yield Panel("Circuits held by hand", {"{{service}}": held}, red_from=1)
    yield Panel("Mode held by hand", {"{{service}}": "max by (service) (service_mode_held)"}, red_from=1)


def _service(service: str) -> Iterator[Panel]:
    job, own = f'job="{service}"', f'service="{service}"'
    yield timeline(service)
    route = {"{{http_route}} {{http_response_status_code}}": _rate(
        f"{_HTTP}_count", "http_route, http_response_status_code", f"{job},{_SERVED}"
    )}  # fmt: skip
    yield Panel("Requests", route, "reqps")
    yield Panel("Latency by route, p95", {"{{http_route}}": _quantile(_HTTP, "http_route", f"{job},{_SERVED}")}, "s")
    calls = _rate(f"{_RPC}_count", "rpc_method, rpc_response_status_code", job)
    yield Panel("gRPC", {"{{rpc_method}} {{rpc_response_status_code}}": calls}, "reqps")
    yield Panel("gRPC latency, p95", {"{{rpc_method}}": _quantile(_RPC, "rpc_method", job)}, "s")
    used = "dependency_call_duration_seconds"
    outcomes = _rate(f"{used}_count", "dependency, outcome", own)
    yield Panel("Calls to dependencies", {"{{dependency}} {{outcome}}": outcomes}, "ops")
    yield Panel("Dependencies' latency, p95", {"{{dependency}}": _quantile(used, "dependency", own)}, "s")
    errors = _rate("app_errors_total", "error_type, endpoint", job)
    yield Panel("Errors", {"{{error_type}} {{endpoint}}": errors}, "ops")
    yield Panel("Answers by a fallback", {"{{fallback}}": _rate("fallback_activations_total", "fallback", own)}, "ops")
    depth = {
        "waiting": f"max(fallback_queue_depth{{{own}}})",
        "dead": f"max(fallback_queue_dead_total{{{own}}})",
    }
    yield Panel("Write queue", depth)
    yield Panel("Oldest queued write", {"age": f"max(fallback_queue_oldest_age_seconds{{{own}}})"}, "s", red_from=300)
    yield from OF_ITS_OWN[service]()
    yield Panel("Memory", {"{{instance}}": f"process_resident_memory_bytes{{{job}}}"}, "bytes")
    yield Panel("Processor", {"{{instance}}": f"rate(process_cpu_seconds_total{{{job}}}{WINDOW})"}, "percentunit")


def _events(service: str) -> Iterator[Panel]:
    own = f'service="{service}"'
    waiting = {"waiting": f"sum(event_buffer_depth{{{own}}})"}
    yield Panel("Events waiting for the stream", waiting)
    sent = {
        "published": _rate("events_published_total", "service", own),
        "dead": _rate("events_dead_total", "service", own),
        "dropped {{reason}}": _rate("events_dropped_total", "reason", own),
    }
    yield Panel("Events", sent, "ops")


def _of_the_dashboard() -> Iterator[Panel]:
    yield from _events("dashboard")
    yield Panel("Standby's lag", {"{{instance}}": "standby_lag_seconds"}, "s")


def _of_ai_core() -> Iterator[Panel]:
    model = "gen_ai_provider_name, gen_ai_request_model"
    legend = "{{gen_ai_provider_name}} {{gen_ai_request_model}}"
    duration = "gen_ai_client_operation_duration_seconds"
    yield Panel(
        "Calls of providers", {legend + " {{error_type}}": _rate(f"{duration}_count", f"{model}, error_type")}, "ops"
    )
    yield Panel("Providers' latency, p95", {legend: _quantile(duration, model)}, "s")
    yield Panel("First token, p95", {legend: _quantile("gen_ai_server_time_to_first_token_seconds", model)}, "s")
    tokens = _rate("gen_ai_client_token_usage_sum", "gen_ai_request_model, gen_ai_token_type")
    yield Panel("Tokens", {"{{gen_ai_request_model}} {{gen_ai_token_type}}": tokens}, "ops")
    cost = f"sum by ({model}) (increase(gen_ai_client_cost_usd_total[1h]))"
    yield Panel("Cost of an hour", {legend: cost}, "currencyUSD")


def _of_webrtc() -> Iterator[Panel]:
    yield from _events("webrtc")
    yield Panel("Connection quality, reports", {"{{quality}}": _rate("webrtc_quality_total", "quality")}, "ops")
    rating = {name: _quantile("webrtc_rating", "service", share=share) for name, share in (("p10", 0.1), ("p50", 0.5))}
    yield Panel("Rating of connections (R, ITU-T G.107)", rating)
    yield Panel("Call reports waiting in memory", {"{{instance}}": "webrtc_call_reports_waiting"})


OF_ITS_OWN = {"dashboard": _of_the_dashboard, "ai-core": _of_ai_core, "webrtc": _of_webrtc}


def dashboard(uid: str, title: str, panels: Sequence[Panel]) -> dict[str, Any]:
    """Panels from left to right, as many in a line as fit."""
    placed, x, y, line = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.wide > WIDTH:
            x, y, line = 0, y + line, 0
        placed.append(panel.data(number, x, y))
        x, line = x + panel.wide, max(line, panel.high)
    return {
        "uid": uid,
        "title": title,
        "tags": ["auralink"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["auralink"], "title": "AuraLink", "keepTime": True}],
        "annotations": {"list": [ALERTS]},
        "panels": placed,
    }


ALERTS: Mapping[str, Any] = {
    "name": "Alerts",
    "datasource": SOURCE,
    "enable": True,
    "expr": 'ALERTS{alertstate="firing",severity="critical"}',
    "titleFormat": "{{alertname}} {{service}}",
    "textFormat": "{{row}}",
    "iconColor": RED,
}


def documents() -> dict[Path, str]:
    """Every dashboard by its path."""
    made = {
        "platform": dashboard("auralink-platform", "AuraLink: platform", list(platform())),
        "matrix": dashboard("auralink-matrix", "AuraLink: degradation matrix", list(matrix())),
    }
    for service in SERVICES:
        title = f"AuraLink: {TITLES[service]}"
        made[service] = dashboard(f"auralink-{service}", title, list(_service(service)))
    return {FOLDER / f"{name}.json": json.dumps(one, indent=1, ensure_ascii=False) + "\n" for name, one in made.items()}


if __name__ == "__main__":
    sys.exit(settle(documents()))
