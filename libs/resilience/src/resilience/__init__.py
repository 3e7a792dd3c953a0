"""Circuit breakers, deadlines, fallbacks and a durable write queue for asyncio services.

The core needs the standard library only. What talks to a real store lives in `resilience.integrations` and is
never imported from here.
"""

from resilience.breaker import (
    BreakerSnapshot,
    CircuitBreaker,
    Classify,
    Counts,
    Permit,
    Transition,
    Verdict,
    default_classify,
)
from resilience.bulkhead import Bulkhead
from resilience.cache import MemoryCache
from resilience.circuit import CircuitState
from resilience.clock import SYSTEM_CLOCK, Clock, FakeClock, SystemClock, Timer
from resilience.deadline import (
    ABANDONED,
    AbandonedTasks,
    Deadline,
    current_deadline,
    deadline_scope,
    hard_timeout,
    without_deadline,
)
from resilience.errors import (
    BulkheadFull,
    CallTimeout,
    CircuitBreakerOpen,
    CircuitHeldOpen,
    MalformedOperation,
    QueueError,
    QueueFull,
    QueueUnavailable,
    ResilienceError,
)
from resilience.events import CallFinished, CallOutcome, Event, EventListener, Events, FallbackUsed, Transitioned
from resilience.fallback import MISSING, Missing, Rung, RungOutcome, descend
from resilience.matrix import Priority, Row, as_json, markdown
from resilience.modes import Mode, ModeTracker, RowStatus, mode_of
from resilience.outcome import Degradation, Served
from resilience.policy import Policy
from resilience.prober import Prober
from resilience.queue import (
    Burial,
    Drainer,
    DrainSettings,
    Entry,
    Fate,
    Operation,
    OperationRecord,
    OperationStatus,
    QueueAdmin,
    QueueStats,
    QueueStore,
    Result,
    Target,
    TargetSession,
)
from resilience.retry import RetrySchedule, retry
from resilience.row_policy import RowPolicy
from resilience.writer import Accepted, DurableWriter, WriteRefused, Written

__all__ = [
    "ABANDONED",
    "MISSING",
    "SYSTEM_CLOCK",
    "AbandonedTasks",
    "Accepted",
    "BreakerSnapshot",
    "Bulkhead",
    "BulkheadFull",
    "Burial",
    "CallFinished",
    "CallOutcome",
    "CallTimeout",
    "CircuitBreaker",
    "CircuitBreakerOpen",
    "CircuitHeldOpen",
    "CircuitState",
    "Classify",
    "Clock",
    "Counts",
    "Deadline",
    "Degradation",
    "DrainSettings",
    "Drainer",
    "DurableWriter",
    "Entry",
    "Event",
    "EventListener",
    "Events",
    "FakeClock",
    "FallbackUsed",
    "Fate",
    "MalformedOperation",
    "MemoryCache",
    "Missing",
    "Mode",
    "ModeTracker",
    "Operation",
    "OperationRecord",
    "OperationStatus",
    "Permit",
    "Policy",
    "Priority",
    "Prober",
    "QueueAdmin",
    "QueueError",
    "QueueFull",
    "QueueStats",
    "QueueStore",
    "QueueUnavailable",
    "ResilienceError",
    "Result",
    "RetrySchedule",
    "Row",
    "RowPolicy",
    "RowStatus",
    "Rung",
    "RungOutcome",
    "Served",
    "SystemClock",
    "Target",
    "TargetSession",
    "Timer",
    "Transition",
    "Transitioned",
    "Verdict",
    "WriteRefused",
    "Written",
    "as_json",
    "current_deadline",
    "deadline_scope",
    "default_classify",
    "descend",
    "hard_timeout",
    "markdown",
    "mode_of",
    "retry",
    "without_deadline",
]
