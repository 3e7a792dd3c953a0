"""For your own tests: time that you move, chance that repeats itself, dependencies that fail on command.

Never imported by the rest of the library, and needs no test framework; `resilience.pytest_plugin` puts it to use in
pytest. A helper that asserts raises `AssertionError` with a text that tells what happened instead.
"""

from resilience.clock import FakeClock
from resilience.testing.circuits import assert_circuit, break_circuit, expect_transitions
from resilience.testing.dependency import HANG, OK, Call, FlakyDependency, slow
from resilience.testing.mode import testing_mode
from resilience.testing.recorder import RecordedEvents, Recorder, record_events
from resilience.testing.served import assert_degraded, assert_fresh
from resilience.testing.waiting import assert_no_tasks_left, assert_nothing_pending, run_until, settle

__all__ = [
    "HANG",
    "OK",
    "Call",
    "FakeClock",
    "FlakyDependency",
    "RecordedEvents",
    "Recorder",
    "assert_circuit",
    "assert_degraded",
    "assert_fresh",
    "assert_no_tasks_left",
    "assert_nothing_pending",
    "break_circuit",
    "expect_transitions",
    "record_events",
    "run_until",
    "settle",
    "slow",
    "testing_mode",
]
