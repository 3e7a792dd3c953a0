"""The one table of errors: may trying again help, and did the dependency answer?

The two questions are kept apart, because they differ. `category` decides about retrying:

    transient   may pass: try again
    client      would come again: never retry (invalid, unauthorized, forbidden, not found, conflict)
    server      broken in a way that somebody should investigate: not retried either

`is_answer` decides whether the dependency *answered*: then it works, so a circuit does not count the error and no
fallback hides it. A `ValueError` in our own code is `client`, but it is no answer; a 404 is both.

The class nearest to the error's own decides, as `except` clauses written in the right order would; predicates are asked
before any class, the latest first. Drivers are recognised by "package.ClassName", so that nothing has to be imported;
HTTP and gRPC statuses by the attributes that clients commonly give to their errors.

An open circuit is `server`: it is there so that nobody waits for this dependency. Who does want to wait for its next
trial adds `CircuitBreakerOpen` as transient, and its `retry_after` is honoured like any other.
"""

import errno
import socket
from collections.abc import Callable, Iterator
from enum import StrEnum
from threading import Lock
from types import FunctionType, MethodType
from typing import Any, Final

from resilience.errors import (
    BulkheadFull,
    CircuitBreakerOpen,
    ClientError,
    QueueFull,
    QueueUnavailable,
    RateLimited,
    TransientError,
)


class Category(StrEnum):
    """What trying again would do."""

    TRANSIENT = "transient"
    CLIENT = "client"
    SERVER = "server"


Finding = tuple[Category, bool]
"""A category, and whether the dependency answered."""
Predicate = Callable[[Exception], bool]
_Look = Callable[["ErrorTable", Exception], Finding | None]  # for classes whose type alone does not say enough
_Rule = tuple[Finding, _Look | None]

_TRANSIENT: Final[Finding] = (Category.TRANSIENT, False)
_ANSWER: Final[Finding] = (Category.CLIENT, True)
_OWN_FAULT: Final[Finding] = (Category.CLIENT, False)
_BROKEN: Final[Finding] = (Category.SERVER, False)
_RANK: Final = {Category.TRANSIENT: 0, Category.CLIENT: 1, Category.SERVER: 2}


class ErrorTable:
    """A table of errors that can be extended; safe between threads. Empty, it calls everything `server`."""

    __slots__ = ("_cache", "_lock", "_predicates", "_rules")

    MAX_TYPES = 1_024
    """Exception classes whose rule is remembered."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._rules: dict[type[BaseException] | str, _Rule] = {}
        self._predicates: tuple[tuple[Predicate, Finding], ...] = ()
        self._cache: dict[type[BaseException], _Rule] = {}

    def add(
        self,
        matches: type[Exception] | str | Predicate,
        category: Category,
        *,
        answer: bool | None = None,
    ) -> "ErrorTable":
        """Add a rule, or replace the one for the same class; returns the table.

        Args:
            matches: a class, with what derives from it; "package.ClassName" for one that shall not be imported
                (`package` is the first part of its module's name); or a function that says whether it means the error
                (one that raises does not mean it).
            category: what trying again would do.
            answer: whether such an error shows that the dependency works; if not given, when it is `client`.

        Raises:
            ValueError: `matches` is none of these, or `category` is unknown.
        """
        category = Category(category)
        finding = (category, category is Category.CLIENT if answer is None else answer)
        if isinstance(matches, type):
            if not issubclass(matches, Exception):
                raise ValueError(f"matches must be a kind of Exception, not {matches.__name__}")
            self._put(matches, (finding, None))
        elif isinstance(matches, str):
            if matches.count(".") != 1:
                raise ValueError(f"matches must be 'package.ClassName', not {matches!r}")
            self._put(matches, (finding, None))
        elif callable(matches):
            with self._lock:
                self._predicates = ((matches, finding), *self._predicates)
        else:
            raise ValueError(f"matches must be a class, a name or a function, not {matches!r}")
        return self

    def classify(self, error: BaseException) -> Finding:
        """Both answers at once. What is no `Exception` (cancellation, exits) is never retried and never an answer."""
        if not isinstance(error, Exception):
            return _BROKEN
        for predicate, finding in self._predicates:
            if _says(predicate, error):
                return finding
        cache, kind = self._cache, type(error)  # the cache before the rules: a rule added meanwhile brings a new one
        rule = cache.get(kind)
        if rule is None:
            rule = self._learn(cache, kind)
        finding, look = rule
        return finding if look is None else look(self, error) or finding

    def category(self, error: BaseException) -> Category:
        """Whether trying again may help."""
        return self.classify(error)[0]

    def is_answer(self, error: BaseException) -> bool:
        """Whether the dependency answered."""
        return self.classify(error)[1]

    def copy(self) -> "ErrorTable":
        """A table of its own with the same rules."""
        other = type(self)()
        with self._lock:
            other._rules, other._predicates = self._rules, self._predicates
        return other

    def _put(self, key: type[BaseException] | str, rule: _Rule) -> None:
        with self._lock:
            self._rules = {**self._rules, key: rule}
            self._cache = {}

    def _learn(self, cache: dict[type[BaseException], _Rule], kind: type[Exception]) -> _Rule:
        rule = self._nearest(kind)
        if rule[1] is _by_status and kind.__module__ == "builtins":
            rule = (rule[0], None)  # Python's own errors carry no status
        elif rule[1] is _by_status and not any(name in vars(one) for one in kind.__mro__ for name in _STATUS_NAMES):
            rule = (rule[0], _by_own_status)
        if len(cache) >= self.MAX_TYPES:
            cache.clear()  # classes made at run time must not pile up
        cache[kind] = rule
        return rule

    def _nearest(self, kind: type[Exception]) -> _Rule:
        rules = self._rules
        for ancestor in kind.__mro__:
            rule = rules.get(ancestor) or rules.get(_name_of(ancestor))
            if rule is not None:
                return rule
        return (_BROKEN, None)


def never_began(error: BaseException) -> bool:
    """Whether `error` proves that the operation did not begin, so that repeating it cannot do it twice.

    True for refusals before the call (an open circuit, a full bulkhead or queue, a rate limit), connections that could
    not be made, and errors with an attribute `not_sent = True`; one with `not_sent = False` says that it did begin. It
    holds for an operation that is one call: of a function that makes two, the first may have happened.
    """
    told = peek(error, "not_sent")
    if told is True or told is False:
        return bool(told)
    if issubclass(type(error), _REFUSALS) or _never_connected(error):
        return True
    return not _REFUSALS_BY_NAME.isdisjoint(map(_name_of, type(error).__mro__))


def peek(thing: object, name: str) -> Any:
    """The attribute, or `None` if there is none or reading it fails: other people's errors hold strange things."""
    try:
        return getattr(thing, name, None)
    except Exception:  # noqa: BLE001
        return None


def _says(predicate: Predicate, error: Exception) -> bool:
    try:
        return bool(predicate(error))
    except Exception:  # noqa: BLE001 - the error at hand matters, not the predicate's
        return False


def _name_of(kind: type) -> str:
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


# -- what an error says by its attributes

_HTTP_TRANSIENT: Final = frozenset({408, 425, 429, 502, 503, 504})
_GRPC: Final[dict[str, Finding]] = {
    **dict.fromkeys(("UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED", "DEADLINE_EXCEEDED"), _TRANSIENT),
    **dict.fromkeys(("INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED"), _ANSWER),
    **dict.fromkeys(("UNAUTHENTICATED", "FAILED_PRECONDITION", "OUT_OF_RANGE"), _ANSWER),
    **dict.fromkeys(("UNKNOWN", "INTERNAL", "UNIMPLEMENTED", "DATA_LOSS", "CANCELLED"), _BROKEN),
}


def _by_status(_table: ErrorTable, error: Exception) -> Finding | None:
    """By the HTTP status (RFC 9110, section 15) or gRPC code (its statuscodes.md) that the error carries, if any.

    A small integer is not taken for a gRPC code: too many errors number their kinds from 1.
    """
    for value in _statuses(error):
        if isinstance(value, int) and 400 <= value <= 599:
            return _TRANSIENT if value in _HTTP_TRANSIENT else _ANSWER if value < 500 else _BROKEN
        name = None if value is None else peek(value, "name")
        if isinstance(name, str) and name in _GRPC:
            return _GRPC[name]
    return None


def _by_own_status(table: ErrorTable, error: Exception) -> Finding | None:
    """`_by_status` for classes that define none: only the error itself may carry one."""
    return _by_status(table, error) if peek(error, "__dict__") else None


_STATUS_NAMES: Final = ("status_code", "status", "response", "code", "__getattr__")
"""What a class defines whose errors may carry a status without holding it themselves."""


def _statuses(error: Exception) -> Iterator[object]:
    yield peek(error, "status_code")
    yield peek(error, "status")
    response = peek(error, "response")
    if response is not None:
        yield peek(response, "status_code")
        yield peek(response, "status")
    code = peek(error, "code")  # last: some clients warn when it is read
    yield _called(code) if isinstance(code, (MethodType, FunctionType)) else code


def _called(code: Callable[[], object]) -> object:
    try:
        value = code()
    except Exception:  # noqa: BLE001
        return None
    close = peek(value, "close")
    if callable(close) and peek(value, "cr_frame") is not None:
        close()  # a coroutine that nobody will await
    return value


_ERRNO_TRANSIENT: Final = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "ENOTCONN", "ESHUTDOWN", "EPIPE", "ETIMEDOUT"),
        *("EHOSTUNREACH", "EHOSTDOWN", "ENETUNREACH", "ENETDOWN", "ENETRESET", "EADDRNOTAVAIL", "ENOBUFS"),
        *("EAGAIN", "EWOULDBLOCK", "EINTR", "EBUSY", "EMFILE", "ENFILE"),
    )
    if hasattr(errno, name)
)


def _by_errno(table: ErrorTable, error: Exception) -> Finding | None:
    found = _by_status(table, error)  # urllib's and requests' HTTP errors are OSErrors
    if found is not None:
        return found
    number = peek(error, "errno")
    if isinstance(error, socket.gaierror):  # it has numbers of its own
        passes = number == socket.EAI_AGAIN
    else:
        passes = (isinstance(number, int) and number in _ERRNO_TRANSIENT) or _never_connected(error)
    return _TRANSIENT if passes else None


def _never_connected(error: BaseException) -> bool:
    """Refused; also as asyncio words it, without a number, when several addresses of one host refused."""
    if type(error) is OSError and len(error.args) == 1:
        text = error.args[0]
        return isinstance(text, str) and text.startswith("Multiple exceptions: ")
    return issubclass(type(error), OSError) and bool(peek(error, "errno") == errno.ECONNREFUSED)


def _by_ticket(_table: ErrorTable, error: Exception) -> Finding | None:
    return _OWN_FAULT if peek(error, "retry_after") is None else None  # more than the limit can ever give


def _by_members(table: ErrorTable, error: Exception) -> Finding | None:
    """A group is as bad as its worst member, and an answer if all of them are."""
    found = [table.classify(leaf) for leaf in _leaves(error)]
    if not found:  # its members cannot be read
        return None
    return max((category for category, _ in found), key=_RANK.__getitem__), all(answer for _, answer in found)


def _leaves(error: Exception) -> Iterator[Exception]:
    stack = [error]
    while stack:
        member = stack.pop()
        if issubclass(type(member), ExceptionGroup):
            stack.extend(peek(member, "exceptions") or ())
        else:
            yield member


# -- the table

_REFUSALS: Final = (
    *(CircuitBreakerOpen, BulkheadFull, RateLimited, QueueFull, QueueUnavailable),
    *(ConnectionRefusedError, socket.gaierror),
)
_REFUSALS_BY_NAME: Final = frozenset(
    (
        *("aiohttp.ClientConnectorError", "httpx.ConnectError", "httpx.ConnectTimeout", "httpx.PoolTimeout"),
        *("asyncpg.CannotConnectNowError", "asyncpg.TooManyConnectionsError", "requests.ConnectTimeout"),
        *("redis.BusyLoadingError", "redis.MaxConnectionsError"),
    )
)

_STANDARD: Final[dict[type[BaseException] | str, _Rule]] = {
    Exception: (_BROKEN, _by_status),
    ExceptionGroup: (_BROKEN, _by_members),
    # ours
    **dict.fromkeys((TransientError, BulkheadFull, QueueFull, QueueUnavailable), (_TRANSIENT, None)),
    RateLimited: (_TRANSIENT, _by_ticket),
    ClientError: (_ANSWER, None),
    CircuitBreakerOpen: (_BROKEN, None),
    # Python's: would come again
    **dict.fromkeys((ValueError, TypeError, LookupError, AttributeError, NameError), (_OWN_FAULT, _by_status)),
    **dict.fromkeys((ArithmeticError, AssertionError, ImportError, NotImplementedError), (_OWN_FAULT, _by_status)),
    **dict.fromkeys((PermissionError, FileNotFoundError, FileExistsError), (_OWN_FAULT, _by_status)),
    **dict.fromkeys((IsADirectoryError, NotADirectoryError, ProcessLookupError), (_OWN_FAULT, _by_status)),
    # Python's: may pass
    **dict.fromkeys((TimeoutError, ConnectionError, EOFError), (_TRANSIENT, None)),
    OSError: (_BROKEN, _by_errno),
    **dict.fromkeys(("ssl.SSLEOFError", "ssl.SSLZeroReturnError"), (_TRANSIENT, None)),
    "ssl.SSLError": (_BROKEN, None),  # a bad certificate; its numbers are no errnos
    # stores
    **dict.fromkeys(("redis.ConnectionError", "redis.TimeoutError", "redis.TryAgainError"), (_TRANSIENT, None)),
    **dict.fromkeys(("redis.ClusterDownError", "redis.ReadOnlyError"), (_TRANSIENT, None)),  # a failover
    **dict.fromkeys(("redis.AuthenticationError", "redis.AuthorizationError"), (_OWN_FAULT, None)),
    **dict.fromkeys(("asyncpg.PostgresConnectionError", "asyncpg.InterfaceError"), (_TRANSIENT, None)),
    **dict.fromkeys(("asyncpg.InternalClientError", "asyncpg.TooManyConnectionsError"), (_TRANSIENT, None)),
    **dict.fromkeys(("asyncpg.AdminShutdownError", "asyncpg.CrashShutdownError"), (_TRANSIENT, None)),
    "asyncpg.CannotConnectNowError": (_TRANSIENT, None),
    **dict.fromkeys(("asyncpg.SerializationError", "asyncpg.DeadlockDetectedError"), (_TRANSIENT, None)),
    **dict.fromkeys(("asyncpg.IntegrityConstraintViolationError", "asyncpg.DataError"), (_ANSWER, None)),
    # HTTP clients
    **dict.fromkeys(("httpx.TimeoutException", "httpx.NetworkError", "httpx.RemoteProtocolError"), (_TRANSIENT, None)),
    **dict.fromkeys(("aiohttp.ClientConnectionError", "aiohttp.ClientPayloadError"), (_TRANSIENT, None)),
    **dict.fromkeys(("requests.ConnectionError", "requests.Timeout"), (_TRANSIENT, None)),
    "requests.ChunkedEncodingError": (_TRANSIENT, None),
    **dict.fromkeys(("aiohttp.ClientSSLError", "requests.SSLError"), (_BROKEN, None)),
}


def _standard() -> ErrorTable:
    table = ErrorTable()
    table._rules = dict(_STANDARD)
    return table


ERRORS: Final = _standard()
"""The process's table: extend it at start, or give a mechanism a `copy()` with rules of its own."""
