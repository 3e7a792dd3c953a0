"""What the WebRTC service promises while a dependency is gone: its rows of the matrix, as far as they are built."""

from resilience import Priority, Row, Verdict, default_classify
from webrtc.model import DomainError

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
    fallbacks=(),
    promise="Rooms can neither be made, read nor joined: an error and the time to retry. ICE servers are still given.",
    recovery="A probe finds Redis within about a second of its return.",
    data_loss="none (rooms live in Redis's own durable storage)",
    user_text="Video calling temporarily unavailable",
)

ROWS: tuple[Row, ...] = (REDIS,)


def classify(error: BaseException) -> Verdict:
    """What an error says about Redis: a domain error is an answer."""
    return Verdict.SUCCESS if isinstance(error, DomainError) else default_classify(error)
