"""Keeps an asyncio service useful while the things it depends on die; `docs` and the README say how and why.

The core needs the standard library only. What talks to a real store lives in `resilience.integrations` and is
never imported from here. A name is imported when it is first asked for, so that a program pays for what it uses.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resilience.adaptive import AdaptiveLimit as AdaptiveLimit
    from resilience.adaptive import LimitChanged as LimitChanged
    from resilience.adaptive import LimitPermit as LimitPermit
    from resilience.backlog import BufferedEvent as BufferedEvent
    from resilience.backlog import BufferStats as BufferStats
    from resilience.backlog import DeadEvent as DeadEvent
    from resilience.backlog import EventsDropped as EventsDropped
    from resilience.backlog import EventsSent as EventsSent
    from resilience.backoff import Backoff as Backoff
    from resilience.breaker import BreakerSnapshot as BreakerSnapshot
    from resilience.breaker import CircuitBreaker as CircuitBreaker
    from resilience.breaker import Classify as Classify
    from resilience.breaker import Counts as Counts
    from resilience.breaker import Permit as Permit
    from resilience.breaker import Transition as Transition
    from resilience.breaker import Verdict as Verdict
    from resilience.breaker import classify_by as classify_by
    from resilience.breaker import default_classify as default_classify
    from resilience.buffer import EventBuffer as EventBuffer
    from resilience.bulkhead import Bulkhead as Bulkhead
    from resilience.bulkhead import BulkheadRejected as BulkheadRejected
    from resilience.cache import MemoryCache as MemoryCache
    from resilience.circuit import CircuitSettings as CircuitSettings
    from resilience.circuit import CircuitState as CircuitState
    from resilience.circuit import growing as growing
    from resilience.classify import ERRORS as ERRORS
    from resilience.classify import Category as Category
    from resilience.classify import ErrorTable as ErrorTable
    from resilience.classify import never_began as never_began
    from resilience.clock import SYSTEM_CLOCK as SYSTEM_CLOCK
    from resilience.clock import Clock as Clock
    from resilience.clock import FakeClock as FakeClock
    from resilience.clock import SystemClock as SystemClock
    from resilience.clock import Timer as Timer
    from resilience.datastore import CachedDataStore as CachedDataStore
    from resilience.deadline import ABANDONED as ABANDONED
    from resilience.deadline import AbandonedTasks as AbandonedTasks
    from resilience.deadline import Deadline as Deadline
    from resilience.deadline import current_deadline as current_deadline
    from resilience.deadline import deadline_scope as deadline_scope
    from resilience.deadline import hard_timeout as hard_timeout
    from resilience.deadline import without_deadline as without_deadline
    from resilience.errors import BulkheadFull as BulkheadFull
    from resilience.errors import CallTimeout as CallTimeout
    from resilience.errors import CircuitBreakerOpen as CircuitBreakerOpen
    from resilience.errors import CircuitHeldOpen as CircuitHeldOpen
    from resilience.errors import ClientError as ClientError
    from resilience.errors import MalformedOperation as MalformedOperation
    from resilience.errors import QueueError as QueueError
    from resilience.errors import QueueFull as QueueFull
    from resilience.errors import QueueUnavailable as QueueUnavailable
    from resilience.errors import RateLimited as RateLimited
    from resilience.errors import ResilienceError as ResilienceError
    from resilience.errors import ServerError as ServerError
    from resilience.errors import TransientError as TransientError
    from resilience.events import CallFinished as CallFinished
    from resilience.events import CallOutcome as CallOutcome
    from resilience.events import Event as Event
    from resilience.events import EventListener as EventListener
    from resilience.events import Events as Events
    from resilience.events import FallbackUsed as FallbackUsed
    from resilience.events import Transitioned as Transitioned
    from resilience.executor import BulkheadExecutor as BulkheadExecutor
    from resilience.fallback import MISSING as MISSING
    from resilience.fallback import Fallback as Fallback
    from resilience.fallback import Missing as Missing
    from resilience.fallback import Rung as Rung
    from resilience.fallback import RungOutcome as RungOutcome
    from resilience.fallback import descend as descend
    from resilience.flight import LoadCancelled as LoadCancelled
    from resilience.freshness import CacheOutcome as CacheOutcome
    from resilience.freshness import CacheServed as CacheServed
    from resilience.freshness import CacheStats as CacheStats
    from resilience.freshness import RefreshFailed as RefreshFailed
    from resilience.freshness import cache_status as cache_status
    from resilience.gcra import Decision as Decision
    from resilience.gcra import Quota as Quota
    from resilience.gcra import rate_limit_headers as rate_limit_headers
    from resilience.governor import GovernorSnapshot as GovernorSnapshot
    from resilience.governor import RampPermit as RampPermit
    from resilience.governor import RecoveryGovernor as RecoveryGovernor
    from resilience.governor import RecoveryThrottled as RecoveryThrottled
    from resilience.governor import working as working
    from resilience.graceful import GracefulDegradation as GracefulDegradation
    from resilience.graceful import get_graceful_degradation as get_graceful_degradation
    from resilience.graceful import get_with_timeout_and_fallback as get_with_timeout_and_fallback
    from resilience.graceful import retry_on_transient as retry_on_transient
    from resilience.graceful import retry_with_backoff as retry_with_backoff
    from resilience.graceful import with_fallback as with_fallback
    from resilience.health import Health as Health
    from resilience.health import HealthChanged as HealthChanged
    from resilience.health import HealthMonitor as HealthMonitor
    from resilience.health import HealthPoint as HealthPoint
    from resilience.health import HealthReport as HealthReport
    from resilience.health import Thresholds as Thresholds
    from resilience.hedge import Hedge as Hedge
    from resilience.hedge import Hedged as Hedged
    from resilience.hedge import HedgeWon as HedgeWon
    from resilience.hedge import LatencyPercentile as LatencyPercentile
    from resilience.limiter import KeyedRateLimiter as KeyedRateLimiter
    from resilience.limiter import RateLimiter as RateLimiter
    from resilience.limiter import RateLimitRejected as RateLimitRejected
    from resilience.matrix import Priority as Priority
    from resilience.matrix import Row as Row
    from resilience.matrix import as_json as as_json
    from resilience.matrix import markdown as markdown
    from resilience.modes import Mode as Mode
    from resilience.modes import ModeChanged as ModeChanged
    from resilience.modes import ModeTracker as ModeTracker
    from resilience.modes import RowStatus as RowStatus
    from resilience.modes import mode_of as mode_of
    from resilience.outcome import Degradation as Degradation
    from resilience.outcome import Served as Served
    from resilience.policy import Policy as Policy
    from resilience.prober import Prober as Prober
    from resilience.propagation import DEADLINE_HEADER as DEADLINE_HEADER
    from resilience.propagation import from_grpc_timeout as from_grpc_timeout
    from resilience.propagation import from_header as from_header
    from resilience.propagation import to_grpc_timeout as to_grpc_timeout
    from resilience.propagation import to_header as to_header
    from resilience.queue import Burial as Burial
    from resilience.queue import Drainer as Drainer
    from resilience.queue import DrainSettings as DrainSettings
    from resilience.queue import Entry as Entry
    from resilience.queue import Fate as Fate
    from resilience.queue import Operation as Operation
    from resilience.queue import OperationRecord as OperationRecord
    from resilience.queue import OperationStatus as OperationStatus
    from resilience.queue import QueueAdmin as QueueAdmin
    from resilience.queue import QueueStats as QueueStats
    from resilience.queue import QueueStore as QueueStore
    from resilience.queue import QueueUnanswered as QueueUnanswered
    from resilience.queue import Result as Result
    from resilience.queue import Target as Target
    from resilience.queue import TargetSession as TargetSession
    from resilience.ramp import RampCut as RampCut
    from resilience.ramp import RampEnded as RampEnded
    from resilience.ramp import RampStarted as RampStarted
    from resilience.recovery import Recovered as Recovered
    from resilience.recovery import Recovery as Recovery
    from resilience.recovery import RecoveryAttempted as RecoveryAttempted
    from resilience.recovery import RecoveryExhausted as RecoveryExhausted
    from resilience.recovery import RecoverySnapshot as RecoverySnapshot
    from resilience.registry import BreakerRegistry as BreakerRegistry
    from resilience.retry import GaveUp as GaveUp
    from resilience.retry import Idempotency as Idempotency
    from resilience.retry import Retried as Retried
    from resilience.retry import Retry as Retry
    from resilience.retry_after import parse_retry_after as parse_retry_after
    from resilience.retry_after import retry_after_of as retry_after_of
    from resilience.retry_budget import RetryBudget as RetryBudget
    from resilience.row_policy import RowPolicy as RowPolicy
    from resilience.stale import StaleCache as StaleCache
    from resilience.timeout import Timeout as Timeout
    from resilience.writer import Accepted as Accepted
    from resilience.writer import DurableWriter as DurableWriter
    from resilience.writer import WriteRefused as WriteRefused
    from resilience.writer import Written as Written

_HOMES = {
    "adaptive": (
        "AdaptiveLimit",
        "LimitChanged",
        "LimitPermit",
    ),
    "backlog": (
        "BufferStats",
        "BufferedEvent",
        "DeadEvent",
        "EventsDropped",
        "EventsSent",
    ),
    "backoff": ("Backoff",),
    "breaker": (
        "BreakerSnapshot",
        "CircuitBreaker",
        "Classify",
        "Counts",
        "Permit",
        "Transition",
        "Verdict",
        "classify_by",
        "default_classify",
    ),
    "buffer": ("EventBuffer",),
    "bulkhead": (
        "Bulkhead",
        "BulkheadRejected",
    ),
    "cache": ("MemoryCache",),
    "circuit": (
        "CircuitSettings",
        "CircuitState",
        "growing",
    ),
    "classify": (
        "Category",
        "ERRORS",
        "ErrorTable",
        "never_began",
    ),
    "clock": (
        "Clock",
        "FakeClock",
        "SYSTEM_CLOCK",
        "SystemClock",
        "Timer",
    ),
    "datastore": ("CachedDataStore",),
    "deadline": (
        "ABANDONED",
        "AbandonedTasks",
        "Deadline",
        "current_deadline",
        "deadline_scope",
        "hard_timeout",
        "without_deadline",
    ),
    "errors": (
        "BulkheadFull",
        "CallTimeout",
        "CircuitBreakerOpen",
        "CircuitHeldOpen",
        "ClientError",
        "MalformedOperation",
        "QueueError",
        "QueueFull",
        "QueueUnavailable",
        "RateLimited",
        "ResilienceError",
        "ServerError",
        "TransientError",
    ),
    "events": (
        "CallFinished",
        "CallOutcome",
        "Event",
        "EventListener",
        "Events",
        "FallbackUsed",
        "Transitioned",
    ),
    "executor": ("BulkheadExecutor",),
    "fallback": (
        "Fallback",
        "MISSING",
        "Missing",
        "Rung",
        "RungOutcome",
        "descend",
    ),
    "flight": ("LoadCancelled",),
    "freshness": (
        "CacheOutcome",
        "CacheServed",
        "CacheStats",
        "RefreshFailed",
        "cache_status",
    ),
    "gcra": (
        "Decision",
        "Quota",
        "rate_limit_headers",
    ),
    "governor": (
        "GovernorSnapshot",
        "RampPermit",
        "RecoveryGovernor",
        "RecoveryThrottled",
        "working",
    ),
    "graceful": (
        "GracefulDegradation",
        "get_graceful_degradation",
        "get_with_timeout_and_fallback",
        "retry_on_transient",
        "retry_with_backoff",
        "with_fallback",
    ),
    "health": (
        "Health",
        "HealthChanged",
        "HealthMonitor",
        "HealthPoint",
        "HealthReport",
        "Thresholds",
    ),
    "hedge": (
        "Hedge",
        "HedgeWon",
        "Hedged",
        "LatencyPercentile",
    ),
    "limiter": (
        "KeyedRateLimiter",
        "RateLimitRejected",
        "RateLimiter",
    ),
    "matrix": (
        "Priority",
        "Row",
        "as_json",
        "markdown",
    ),
    "modes": (
        "Mode",
        "ModeChanged",
        "ModeTracker",
        "RowStatus",
        "mode_of",
    ),
    "outcome": (
        "Degradation",
        "Served",
    ),
    "policy": ("Policy",),
    "prober": ("Prober",),
    "propagation": (
        "DEADLINE_HEADER",
        "from_grpc_timeout",
        "from_header",
        "to_grpc_timeout",
        "to_header",
    ),
    "queue": (
        "Burial",
        "DrainSettings",
        "Drainer",
        "Entry",
        "Fate",
        "Operation",
        "OperationRecord",
        "OperationStatus",
        "QueueAdmin",
        "QueueStats",
        "QueueStore",
        "QueueUnanswered",
        "Result",
        "Target",
        "TargetSession",
    ),
    "ramp": (
        "RampCut",
        "RampEnded",
        "RampStarted",
    ),
    "recovery": (
        "Recovered",
        "Recovery",
        "RecoveryAttempted",
        "RecoveryExhausted",
        "RecoverySnapshot",
    ),
    "registry": ("BreakerRegistry",),
    "retry": (
        "GaveUp",
        "Idempotency",
        "Retried",
        "Retry",
    ),
    "retry_after": (
        "parse_retry_after",
        "retry_after_of",
    ),
    "retry_budget": ("RetryBudget",),
    "row_policy": ("RowPolicy",),
    "stale": ("StaleCache",),
    "timeout": ("Timeout",),
    "writer": (
        "Accepted",
        "DurableWriter",
        "WriteRefused",
        "Written",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # a test holds the table against the imports above


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
