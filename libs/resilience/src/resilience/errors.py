"""The errors of this library, named after what happened.

    ResilienceError
    ├── CircuitBreakerOpen      rejected without a call: the circuit is open, or half-open and busy
    │   └── CircuitHeldOpen     rejected without a call: an operator holds the circuit open
    ├── CallTimeout             no answer within the limit (also a TimeoutError)
    ├── BulkheadFull            rejected without a call: too many callers already
    ├── RateLimited             rejected without a call: too many calls in too short a time
    ├── TransientError          raised by your code: trying again may help
    ├── ClientError             raised by your code: the caller is wrong, and trying again will not help
    ├── ServerError             raised by your code: the dependency is broken, somebody should look
    └── QueueError
        ├── QueueFull           the write queue holds as much as it may
        ├── QueueUnavailable    the write queue's store cannot be reached
        └── MalformedOperation  a queued item that cannot be read

Texts are built when they are read, not when the error is raised: a rejection has to stay cheap. They name rows
and limits only, never an address or a value.
"""

from typing import Final


class ResilienceError(Exception):
    """Base of everything this library raises by itself."""


class CircuitBreakerOpen(ResilienceError):
    """The call was rejected without being made.

    Made with `name`, `retry_after` and `last_cause`, which are kept in `args` alone: a rejection has to be cheap.
    """

    held = False
    """Whether an operator holds the circuit open, so that no time will end it."""

    @property
    def name(self) -> str:
        """The circuit's name."""
        return str(self.args[0]) if self.args else ""

    @property
    def retry_after(self) -> float | None:
        """The real time in seconds until the next trial may happen: 0 while a trial is running, `None` when held."""
        return self.args[1] if len(self.args) > 1 else None

    @property
    def last_cause(self) -> BaseException | None:
        """The failure that opened the circuit, when there was one."""
        return self.args[2] if len(self.args) > 2 else None

    def __str__(self) -> str:
        if self.retry_after is None:
            return f"circuit {self.name!r} is open"
        return f"circuit {self.name!r} is open, next trial in {self.retry_after:.1f} s"


class CircuitHeldOpen(CircuitBreakerOpen):
    """An operator holds the circuit open; `retry_after` is `None`."""

    held = True

    def __str__(self) -> str:
        return f"circuit {self.name!r} is held open by an operator"


class CallTimeout(ResilienceError, TimeoutError):
    """The call had not answered within `limit` seconds; it was cancelled, and its outcome is unknown."""

    def __init__(self, name: str, limit: float) -> None:
        super().__init__(name, limit)
        self.name = name
        self.limit = limit

    def __str__(self) -> str:
        return f"{self.name or 'call'} did not answer within {self.limit:.3g} s"


class BulkheadFull(ResilienceError):
    """Every slot is taken and as many callers wait as may wait (or too many abandoned calls still run).

    Made with `name`, which is kept in `args` alone: a rejection has to be cheap.
    """

    @property
    def name(self) -> str:
        """What is full."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return f"too many concurrent calls to {self.name or 'the dependency'}"


POLICY_FAILURES: Final = (CircuitBreakerOpen, BulkheadFull, CallTimeout)
"""How a guarded call fails without the dependency having said anything: to be caught together."""


class RateLimited(ResilienceError):
    """The rate limit does not allow the call now; it will in `retry_after` seconds (`None`: never, it asks for more
    than the limit can ever give)."""

    def __init__(self, name: str, retry_after: float | None) -> None:
        super().__init__(name, retry_after)
        self.name = name
        self.retry_after = retry_after

    def __str__(self) -> str:
        when = "never" if self.retry_after is None else f"in {self.retry_after:.3g} s"
        return f"rate limit of {self.name or 'the call'} reached, allowed again {when}"


class TransientError(ResilienceError):
    """For your own code to raise: it failed in a way that may pass. `retry_after` in seconds, when known."""

    def __init__(self, *args: object, retry_after: float | None = None) -> None:
        super().__init__(*args)
        self.retry_after = retry_after


class ClientError(ResilienceError):
    """For your own code to raise: the dependency works, and has answered that the request is wrong."""


class ServerError(ResilienceError):
    """For your own code to raise: the dependency is broken in a way that somebody should look into."""


class QueueError(ResilienceError):
    """The write queue could not do what was asked."""


class QueueFull(QueueError):
    """The queue holds as many operations as it may; nothing was accepted."""


class QueueUnavailable(QueueError):
    """The queue's store cannot be reached; nothing was accepted."""


class MalformedOperation(QueueError):
    """A queued item cannot be read back as an operation."""
