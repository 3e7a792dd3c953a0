"""What the WebRTC service promises while a dependency is gone: its rows of the matrix."""

from resilience import CallTimeout, Priority, Row, Verdict, classify_by, default_classify
from webrtc.model import DomainError
from webrtc.ports import HistoryUnavailable

MEMORY_ROOMS = "memory-rooms"
"""Rooms and participants as this instance alone knows them."""
STUN_ONLY = "stun-only"
REDIS_QUEUE = "redis-queue"
MEMORY_BUFFER = "memory-buffer"

REDIS = Row(
    id="webrtc.redis",
    label="W1",
    service="webrtc",
    dependency="redis",
    title="Redis",
    priority=Priority.P0,
    impact="critical",
    max_failures=3,
    open_seconds=30,
    call_timeout=0.6,
    fallbacks=(MEMORY_ROOMS,),
    promise="Connected calls go on; joining, leaving and signalling go on among the participants of each instance, who "
    "are told that it is alone. Rooms that this instance knows are read, joined and deleted, and new ones made, in its "
    "memory, and the answer says so. A room that only another instance holds, or that is not known here, is an error "
    "and the time to retry; so is a message to a participant elsewhere.",
    recovery="A probe finds Redis within about a second of its return; what happened in memory is merged into it: an "
    "instance's own joins and leaves win over the old state, a deletion by the owner wins over all. Instances are told "
    "of each other's participants again, and nobody is dropped.",
    data_loss="high (what an instance alone knows is lost with it)",
    user_text="Running calls go on. What is on other servers cannot be reached for the moment.",
)

TURN = Row(
    id="webrtc.turn",
    label="W2",
    service="webrtc",
    dependency="turn",
    title="TURN",
    priority=Priority.P1,
    impact="medium",
    max_failures=3,
    open_seconds=30,
    call_timeout=1.2,
    fallbacks=(STUN_ONLY,),
    promise="Within 3 s ICE servers are given without TURN, and participants of running calls are told so. Direct "
    "media fails only between a symmetric NAT and a symmetric or port-restricted one; such a call goes through the "
    "SFU.",
    recovery="The next allocation that succeeds, about a second after TURN is back, gives it out again, with fresh "
    "credentials, and offers participants an ICE restart.",
    data_loss="none",
    user_text="Calls from restricted networks may take another way",
)

POSTGRES = Row(
    id="webrtc.postgres",
    label="W3",
    service="webrtc",
    dependency="postgres",
    title="PostgreSQL",
    priority=Priority.P1,
    impact="medium",
    max_failures=5,
    open_seconds=60,
    call_timeout=1.2,
    fallbacks=(REDIS_QUEUE, MEMORY_BUFFER),
    promise="Calls do not notice: what the history has to know of them waits in a queue in Redis, and while that is "
    "away too in the instance's memory (10,000 reports). Reading the history is an error and the time to retry; the "
    "Dashboard's own copy stays readable.",
    recovery="A probe finds PostgreSQL within about a second of its return, the queue is drained, and memory is "
    "written as soon as either is back. Every call is in the history once.",
    data_loss="low (queued; what waits in memory, with Redis away too, is lost if the instance ends)",
    user_text="The call history is temporarily unavailable",
)

ROWS: tuple[Row, ...] = (REDIS, TURN, POSTGRES)


def classify(error: BaseException) -> Verdict:
    """What an error says about Redis: a domain error is an answer."""
    return Verdict.SUCCESS if isinstance(error, DomainError) else default_classify(error)


_history_verdict = classify_by(
    neutral=(CallTimeout,),  # its caller had less time than it is granted
    failures=(HistoryUnavailable, OSError),
    otherwise=Verdict.SUCCESS,
)


def classify_history(error: BaseException) -> Verdict:
    """What an error says about PostgreSQL: all but an outage is its answer, also to a statement that is wrong."""
    return _history_verdict(error) if isinstance(error, Exception) else Verdict.NEUTRAL
