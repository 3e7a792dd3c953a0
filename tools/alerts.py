"""What is alerted: a rule for each row and each fallback, made from the rows, and the platform's own rules.

An alert has the labels `service` and `severity`, and a page to read: a row's runbook, or docs/how-to/observe.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from devstack.cli.matrix import rows
from resilience import Priority, Row

SERVICES = ("dashboard", "ai-core", "webrtc")
SEVERITIES: Mapping[Priority, str] = {Priority.P0: "critical", Priority.P1: "warning", Priority.P2: "info"}
DEGRADED_FOR = "5m"
KEPT_FOR = "1m"
"""Longer than an emergency outlives its circuits (MODE_LEAVE_AFTER): Alertmanager never sends the end of an alert that
ends while it is muted."""
FAILING_FOR = "2m"
SEVERAL: Mapping[str, str] = {"ai_core.providers": ".+:.+", "ai_core.speech": "elevenlabs|openai-speech"}
"""Rows with a circuit for each of several providers: what their names look like."""
OBSERVE = "docs/how-to/observe.md"
QUEUE_AGE = 300  # s; the queue is drained within seconds of a recovery
QUEUE_TTL_NEAR = 2880  # s: 80 % of FALLBACK_QUEUE_TTL's default, after which a write is a dead letter
RECOVERY = 5  # s, the matrix's promise
_ANY = "|".join(SERVICES)
_FAILED = 'http_response_status_code=~"5..",http_route!~"/health/.*"'
_FAILED_CALLS = 'rpc_response_status_code=~"UNAVAILABLE|INTERNAL|UNKNOWN|DEADLINE_EXCEEDED"'


@dataclass(frozen=True)
class Alert:
    """One rule as Prometheus reads it."""

    name: str
    expr: str
    hold: str  # `for`
    labels: Mapping[str, str]
    annotations: Mapping[str, str] = field(default_factory=dict)
    keep: str = ""  # `keep_firing_for`

    def data(self) -> dict[str, object]:
        """For the rule file."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.hold,
            **({"keep_firing_for": self.keep} if self.keep else {}),
            "labels": dict(self.labels),
            "annotations": dict(self.annotations),
        }


def matcher(row: Row) -> str:
    """The row's circuits among the samples of circuit_breaker_state."""
    several = SEVERAL.get(row.id)
    dependency = f'dependency=~"{several}"' if several else f'dependency="{row.dependency}"'
    return f'service="{row.service}",{dependency}'


def degraded(row: Row) -> Alert:
    """The row's circuit has not been closed for a while; half-open is not closed."""
    return Alert(
        "ServiceDegraded",
        f'max by (service, dependency, instance) (circuit_breaker_state{{{matcher(row)},state!="closed"}}) == 1',
        DEGRADED_FOR,
        {
            "severity": SEVERITIES[row.priority],
            "row": row.id,
            "label": row.label,
            "service": row.service,
            "priority": row.priority.value,
        },
        {
            "summary": f"{row.label}: {row.service} without {row.title}",
            "impact": f"{row.priority.value} {row.impact}; data loss risk: {row.data_loss}",
            "promise": row.promise,
            "recovery": row.recovery,
            "users_see": row.user_text,
            "runbook": runbook(row),
        },
        KEPT_FOR,
    )


def runbook(row: Row) -> str:
    """Where it says what to do."""
    return f"docs/runbooks/{row.id}.md"


def ladders(declared: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows that each service's fallbacks serve."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in declared:
        for fallback in row.fallbacks:
            found.setdefault((row.service, fallback), []).append(row)
    return found


def failing(service: str, fallback: str, served: list[Row]) -> Alert:
    """What serves instead fails as well, so that callers get errors; as severe as the worst of its rows."""
    named = f'fallback=~"{SEVERAL["ai_core.providers"]}"' if ":" in fallback else f'fallback="{fallback}"'
    worst = min(served, key=lambda row: row.priority.value)
    labels = ", ".join(row.label for row in served)
    return Alert(
        "FallbackFailing",
        f'sum by (service, fallback, instance) (rate(fallback_errors_total{{service="{service}",{named}}}[5m])) > 0.1',
        FAILING_FOR,
        {
            "severity": SEVERITIES[worst.priority],
            "service": service,
            "rung": fallback,
            "rows": labels,
            "priority": worst.priority.value,
        },
        {
            "summary": f"{service}: the fallback {fallback} of {labels} fails",
            "impact": f"Callers get errors where {labels} promises an answer.",
            "runbook": " ".join(runbook(row) for row in served),
        },
    )


def per_row() -> Iterator[Alert]:
    """ServiceDegraded for every row."""
    return map(degraded, rows())


def per_fallback() -> Iterator[Alert]:
    """FallbackFailing for every fallback of every service."""
    return (failing(*ladder, served) for ladder, served in ladders(rows()).items())


def _general(name: str, expr: str, hold: str, severity: str, summary: str, impact: str, service: str = "") -> Alert:
    labels = {"severity": severity, "service": service or "{{ $labels.service }}"}
    page = f"{OBSERVE}#{name.lower()}"
    return Alert(name, expr, hold, labels, {"summary": summary, "impact": impact, "runbook": page})


def _by_job(name: str, expr: str, hold: str, severity: str, summary: str, impact: str) -> Alert:
    """For metrics without the label `service`: a scrape job has the service's name."""
    return _general(name, expr, hold, severity, summary, impact, service="{{ $labels.job }}")


def platform() -> Iterator[Alert]:
    """What no single row says."""
    yield _by_job(
        "ServiceDown",
        f'up{{job=~"{_ANY}"}} == 0',
        "30s",
        "critical",
        "{{ $labels.job }} at {{ $labels.instance }} does not answer",
        "An instance is gone, frozen or cut off; the others, if any, carry its load.",
    )
    for service in SERVICES:
        yield _general(
            "ServiceMissing",
            f'absent(up{{job="{service}"}})',
            "1m",
            "critical",
            f"{service} has no instance that Prometheus knows of",
            "Nothing of it is watched, and probably nothing of it runs.",
            service,
        )
    yield from (*_modes(), *_queues(), *_errors())


def _modes() -> Iterator[Alert]:
    yield _general(
        "EmergencyMode",
        'max by (service, instance) (service_mode{mode="emergency"}) == 1',
        "15s",
        "critical",
        "{{ $labels.service }} is in emergency mode",
        "Only essential endpoints answer, and live updates are off.",
    )
    yield _general(
        "ModeHeld",
        "max by (service, instance) (service_mode_held) == 1",
        "15m",
        "warning",
        "{{ $labels.service }}: an operator holds the mode",
        "It follows the rows again when it is released.",
    )
    yield _general(
        "CircuitHeld",
        "max by (service, instance) (circuit_breakers_held) > 0",
        "15m",
        "warning",
        "{{ $labels.service }}: an operator holds a circuit",
        "It neither protects nor heals until it is reset.",
    )


def _queues() -> Iterator[Alert]:
    age = "max by (service) (fallback_queue_oldest_age_seconds)"
    yield _general(
        "QueuedWritesWait",
        f"{age} > {QUEUE_AGE}",
        "1m",
        "warning",
        "{{ $labels.service }}: the oldest queued write waits for {{ $value | humanizeDuration }}",
        "Accepted changes are not applied yet.",
    )
    yield _general(
        "QueuedWritesExpire",
        f"{age} > {QUEUE_TTL_NEAR}",
        "0s",
        "critical",
        "{{ $labels.service }}: queued writes are about to expire",
        "Writes older than FALLBACK_QUEUE_TTL become dead letters and have to be replayed by hand.",
    )
    yield _general(
        "DeadLetters",
        "max by (service) (fallback_queue_dead_total) > 0",
        "1m",
        "warning",
        "{{ $labels.service }}: {{ $value }} writes could not be applied",
        "Accepted changes wait for an operator's decision.",
    )


def _errors() -> Iterator[Alert]:
    yield _by_job(
        "ErrorRate",
        _share("http_server_request_duration_seconds_count", _FAILED, 'http_route!~"/health/.*"'),
        "5m",
        "critical",
        "{{ $labels.job }}: {{ $value | humanizePercentage }} of HTTP answers are failures",
        "More than 0.5 % of answers have a status of 500 or above.",
    )
    yield _by_job(
        "CallErrorRate",
        _share("rpc_server_call_duration_seconds_count", _FAILED_CALLS, ""),
        "5m",
        "warning",
        "{{ $labels.job }}: {{ $value | humanizePercentage }} of gRPC answers are failures",
        "More than 0.5 % of calls between services fail.",
    )
    seen = "sum by (job, error_type) (increase(app_error_recovery_seconds_{}[10m]))"
    count, fast = seen.format("count"), seen.format(f'bucket{{le="{float(RECOVERY)}"}}')
    yield _by_job(
        "SlowRecovery",
        f"{count} - {fast} > 0.5",
        "0s",
        "info",
        "{{ $labels.job }}: {{ $labels.error_type }} took more than 5 s to recover from",
        "An endpoint that failed answered well again only after more than 5 s, without a fallback to cover for it.",
    )


def _share(metric: str, failed: str, of: str) -> str:
    """More than 0.5 % of the answers; one failure alone is out of the window before the alert fires."""
    part, whole = f"{metric}{{{failed}}}", f"{metric}{{{of}}}" if of else metric
    return f"sum by (job) (rate({part}[5m])) / sum by (job) (rate({whole}[5m])) > 0.005"


def groups() -> dict[str, list[Alert]]:
    """Every alert, by the group that is evaluated together."""
    return {"rows": list(per_row()), "fallbacks": list(per_fallback()), "platform": list(platform())}
