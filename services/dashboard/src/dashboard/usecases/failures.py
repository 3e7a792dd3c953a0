"""Telling an outage from an answer, for work that waits for an outage to end."""

from __future__ import annotations

from resilience import ResilienceError, RowPolicy, Verdict


def is_answer(policy: RowPolicy, error: Exception) -> bool:
    """Whether the dependency has answered with this error: it works, and waiting would change nothing."""
    return not isinstance(error, ResilienceError) and policy.breaker.verdict(error) is Verdict.SUCCESS
