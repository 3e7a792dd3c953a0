"""The table of errors: what trying again would do, whether the dependency answered, and whether the call began."""

import asyncio
import errno
import http.client
import socket
import ssl
import threading
import urllib.error
from email.message import Message
from enum import Enum, IntEnum
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.classify import ERRORS, Category, ErrorTable, never_began, peek
from resilience.errors import (
    BulkheadFull,
    CallTimeout,
    CircuitBreakerOpen,
    ClientError,
    MalformedOperation,
    QueueFull,
    QueueUnavailable,
    RateLimited,
    ResilienceError,
    ServerError,
    TransientError,
)

TRANSIENT, CLIENT, SERVER = Category


class HttpError(Exception):
    def __init__(self, status_code: Any) -> None:
        self.status_code = status_code


class GrpcCode(Enum):
    """Named as grpc's own, with the number in a tuple."""

    CANCELLED = (1, "cancelled")
    UNKNOWN = (2, "unknown")
    INVALID_ARGUMENT = (3, "invalid argument")
    DEADLINE_EXCEEDED = (4, "deadline exceeded")
    NOT_FOUND = (5, "not found")
    ALREADY_EXISTS = (6, "already exists")
    PERMISSION_DENIED = (7, "permission denied")
    RESOURCE_EXHAUSTED = (8, "resource exhausted")
    FAILED_PRECONDITION = (9, "failed precondition")
    ABORTED = (10, "aborted")
    OUT_OF_RANGE = (11, "out of range")
    UNIMPLEMENTED = (12, "unimplemented")
    INTERNAL = (13, "internal")
    UNAVAILABLE = (14, "unavailable")
    DATA_LOSS = (15, "data loss")
    UNAUTHENTICATED = (16, "unauthenticated")


class GrpcError(Exception):
    def __init__(self, code: GrpcCode) -> None:
        self._code = code

    def code(self) -> GrpcCode:
        return self._code


def foreign(name: str, module: str, *bases: type[Exception]) -> type[Exception]:
    """A driver's exception class, without the driver."""
    return type(name, bases or (Exception,), {"__module__": module})


# -- our own errors


@pytest.mark.parametrize(
    ("error", "category", "answer"),
    [
        (TransientError(), TRANSIENT, False),
        (CallTimeout("x", 1.0), TRANSIENT, False),
        (BulkheadFull("x"), TRANSIENT, False),
        (RateLimited("x", 1.0), TRANSIENT, False),
        (RateLimited("x", 0.0), TRANSIENT, False),
        (QueueFull(), TRANSIENT, False),
        (QueueUnavailable(), TRANSIENT, False),
        (ClientError(), CLIENT, True),
        (ServerError(), SERVER, False),
        (MalformedOperation(), SERVER, False),
        (ResilienceError(), SERVER, False),
    ],
)
def test_our_own_errors(error: Exception, category: Category, answer: bool) -> None:
    assert ERRORS.classify(error) == (category, answer)
    assert ERRORS.category(error) is category
    assert ERRORS.is_answer(error) is answer


def test_an_open_circuit_is_not_transient_as_nobody_is_to_wait_for_it() -> None:
    assert ERRORS.classify(CircuitBreakerOpen("x", 1.0)) == (SERVER, False)
    waiting = ERRORS.copy().add(CircuitBreakerOpen, TRANSIENT)
    assert waiting.classify(CircuitBreakerOpen("x", 1.0)) == (TRANSIENT, False)


def test_a_rate_limit_that_can_never_allow_the_call_is_the_callers_fault() -> None:
    assert ERRORS.classify(RateLimited("x", None)) == (CLIENT, False)


# -- Python's errors


@pytest.mark.parametrize(
    "error",
    [
        *(
            ValueError(),
            TypeError(),
            KeyError(),
            IndexError(),
            AttributeError(),
            NameError(),
            UnicodeDecodeError("a", b"", 0, 0, ""),
        ),
        *(ZeroDivisionError(), AssertionError(), ImportError(), NotImplementedError()),
        *(PermissionError(), FileNotFoundError(), FileExistsError(), IsADirectoryError(), NotADirectoryError()),
        ProcessLookupError(),
        *(OSError(errno.EACCES, ""), OSError(errno.ENOENT, ""), OSError(errno.EEXIST, "")),
    ],
    ids=repr,
)
def test_what_would_come_again_is_never_retried_but_no_answer_of_the_dependency(error: Exception) -> None:
    assert ERRORS.classify(error) == (CLIENT, False)


@pytest.mark.parametrize(
    "error",
    [
        *(TimeoutError(), ConnectionError(), ConnectionResetError(), BrokenPipeError(), EOFError()),
        *(asyncio.IncompleteReadError(b"", 1), http.client.RemoteDisconnected("")),
        *(OSError(getattr(errno, name), "") for name in ("ECONNREFUSED", "ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH")),
        *(OSError(getattr(errno, name), "") for name in ("ENETDOWN", "EAGAIN", "EINTR", "EMFILE", "EADDRNOTAVAIL")),
        socket.gaierror(socket.EAI_AGAIN, "try again"),
        OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] ..."),
        *(ssl.SSLEOFError(8, "EOF"), ssl.SSLZeroReturnError(6, "closed")),
    ],
    ids=repr,
)
def test_what_may_pass_is_transient(error: Exception) -> None:
    assert ERRORS.classify(error) == (TRANSIENT, False)


@pytest.mark.parametrize(
    "error",
    [
        *(Exception(), RuntimeError(), MemoryError(), RecursionError(), StopIteration()),
        *(
            OSError(),
            OSError(errno.ENOSPC, "full"),
            OSError("something else"),
            OSError(errno.EIO, "Multiple exceptions: "),
        ),
        socket.gaierror(socket.EAI_NONAME, "unknown"),
        *(ssl.SSLError(4, "the number is no errno"), ssl.SSLCertVerificationError(1, "bad certificate")),
    ],
    ids=repr,
)
def test_everything_else_is_to_be_investigated(error: Exception) -> None:
    assert ERRORS.classify(error) == (SERVER, False)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(), GeneratorExit()])
def test_cancellation_and_exits_are_never_retried_and_never_an_answer(error: BaseException) -> None:
    table = ERRORS.copy().add(lambda _: True, TRANSIENT, answer=True)
    assert table.classify(error) == (SERVER, False)


def test_a_failing_number_in_an_os_error_breaks_nothing() -> None:
    assert ERRORS.category(OSError([], "odd")) is SERVER
    assert not never_began(OSError([], "odd"))
    assert not never_began(OSError(SimpleNamespace()))


# -- HTTP


def test_http_statuses() -> None:
    for status in range(700):
        if status in (408, 425, 429, 502, 503, 504):
            expected = (TRANSIENT, False)
        elif 400 <= status < 500:
            expected = (CLIENT, True)
        else:
            expected = (SERVER, False)
        assert ERRORS.classify(HttpError(status)) == expected, status


@pytest.mark.parametrize("where", ["status_code", "status", "code", "response.status_code", "response.status"])
@pytest.mark.parametrize("value", [404, HTTPStatus.NOT_FOUND])
def test_a_status_is_found_wherever_clients_put_it(where: str, value: int) -> None:
    error = HttpError(None)
    holder: Any = error
    if "." in where:
        holder = SimpleNamespace()
        error.response = holder  # type: ignore[attr-defined]
    setattr(holder, where.rpartition(".")[2], value)
    assert ERRORS.is_answer(error)


def test_the_http_errors_of_urllib_are_judged_by_status_although_they_are_os_errors() -> None:
    def error(code: int) -> urllib.error.HTTPError:
        return urllib.error.HTTPError("http://x", code, "", Message(), None)

    not_found, away = error(404), error(503)
    try:
        assert ERRORS.classify(not_found) == (CLIENT, True)
        assert ERRORS.classify(away) == (TRANSIENT, False)
    finally:
        not_found.close()
        away.close()


def test_a_status_on_a_kind_of_value_error_counts() -> None:
    class Invalid(ValueError):
        status = 503

    assert ERRORS.classify(Invalid()) == (TRANSIENT, False)


@pytest.mark.parametrize(
    "value", [True, 5, 14, 0, -1, 999, "404", "NOT_FOUND", None, [], {}, 404.5, SimpleNamespace(name=[])]
)
@pytest.mark.parametrize("where", ["status_code", "status", "code"])
def test_what_is_no_status_says_nothing(where: str, value: object) -> None:
    error = RuntimeError()
    odd = foreign("Odd", "odd")()
    for each in (error, odd):
        setattr(each, where, value)
        assert ERRORS.classify(each) == (SERVER, False)


# -- gRPC


@pytest.mark.parametrize("code", GrpcCode)
def test_grpc_codes(code: GrpcCode) -> None:
    if code.name in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED", "DEADLINE_EXCEEDED"):
        expected = (TRANSIENT, False)
    elif code.name in ("CANCELLED", "UNKNOWN", "UNIMPLEMENTED", "INTERNAL", "DATA_LOSS"):
        expected = (SERVER, False)
    else:
        expected = (CLIENT, True)
    assert ERRORS.classify(GrpcError(code)) == expected


def test_a_grpc_code_may_also_be_a_plain_attribute() -> None:
    class Number(IntEnum):
        NOT_FOUND = 5

    for where in ("code", "status"):
        error = foreign("RpcError", "rpc")()
        setattr(error, where, GrpcCode.NOT_FOUND)
        assert ERRORS.is_answer(error)
        setattr(error, where, Number.NOT_FOUND)
        assert ERRORS.is_answer(error)
    function = foreign("RpcError", "rpc")()
    function.code = lambda: GrpcCode.UNAVAILABLE  # type: ignore[attr-defined]
    assert ERRORS.category(function) is TRANSIENT


def test_the_real_grpc_is_recognised() -> None:
    grpc = pytest.importorskip("grpc")
    metadata = grpc.aio.Metadata()
    for code, expected in ((grpc.StatusCode.UNAVAILABLE, TRANSIENT), (grpc.StatusCode.NOT_FOUND, CLIENT)):
        assert ERRORS.category(grpc.aio.AioRpcError(code, metadata, metadata)) is expected


# -- strange errors


class Hostile(Exception):
    """Every attribute that might be asked for raises."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class Explosive(Exception):
    @property
    def status_code(self) -> int:
        raise KeyError("not today")

    def code(self) -> int:
        raise ZeroDivisionError

    @property
    def response(self) -> object:
        return Hostile()


def test_an_error_whose_attributes_raise_is_classified_all_the_same() -> None:
    for error in (Hostile(), Explosive()):
        assert ERRORS.classify(error) == (SERVER, False)
        assert not never_began(error)
        assert peek(error, "status_code") is None


def test_a_status_behind_an_exploding_attribute_is_still_found() -> None:
    class Partly(Explosive):
        status = 404

    assert ERRORS.is_answer(Partly())


def test_a_code_that_is_a_coroutine_function_leaves_no_coroutine_behind() -> None:
    class Async(Exception):
        async def code(self) -> int:
            return 404

    assert ERRORS.classify(Async()) == (SERVER, False)


def test_a_class_as_code_is_not_called() -> None:
    class Trap(Exception):
        class code:  # noqa: N801
            def __init__(self) -> None:
                raise AssertionError("called")

    assert ERRORS.classify(Trap()) == (SERVER, False)


# -- drivers, by name


@pytest.mark.parametrize(
    ("name", "module", "category", "answer"),
    [
        *(
            (name, "redis.exceptions", TRANSIENT, False)
            for name in ("ConnectionError", "TimeoutError", "TryAgainError")
        ),
        *((name, "redis.exceptions", TRANSIENT, False) for name in ("ClusterDownError", "ReadOnlyError")),
        *((name, "redis.exceptions", CLIENT, False) for name in ("AuthenticationError", "AuthorizationError")),
        ("ResponseError", "redis.exceptions", SERVER, False),
        ("ConnectionError", "redislike.exceptions", SERVER, False),
        *((name, "asyncpg.exceptions._base", TRANSIENT, False) for name in ("InterfaceError", "InternalClientError")),
        *((name, "asyncpg.exceptions", TRANSIENT, False) for name in ("PostgresConnectionError", "SerializationError")),
        *((name, "asyncpg.exceptions", TRANSIENT, False) for name in ("AdminShutdownError", "CrashShutdownError")),
        *(
            (name, "asyncpg.exceptions", TRANSIENT, False)
            for name in ("CannotConnectNowError", "DeadlockDetectedError")
        ),
        ("TooManyConnectionsError", "asyncpg.exceptions", TRANSIENT, False),
        *((name, "asyncpg.exceptions", CLIENT, True) for name in ("IntegrityConstraintViolationError", "DataError")),
        ("PostgresError", "asyncpg.exceptions._base", SERVER, False),
        *((name, "httpx", TRANSIENT, False) for name in ("TimeoutException", "NetworkError", "RemoteProtocolError")),
        *(
            (name, "aiohttp.client_exceptions", TRANSIENT, False)
            for name in ("ClientConnectionError", "ClientPayloadError")
        ),
        ("ClientSSLError", "aiohttp.client_exceptions", SERVER, False),
        *(
            (name, "requests.exceptions", TRANSIENT, False)
            for name in ("ConnectionError", "Timeout", "ChunkedEncodingError")
        ),
        ("SSLError", "requests.exceptions", SERVER, False),
    ],
)
def test_drivers_are_recognised_by_name(name: str, module: str, category: Category, answer: bool) -> None:
    driver = foreign(name, module)
    assert ERRORS.classify(driver()) == (category, answer)
    assert ERRORS.classify(foreign("Derived", "elsewhere", driver)()) == (category, answer)


def test_the_real_drivers_are_recognised() -> None:
    redis = pytest.importorskip("redis.exceptions")
    asyncpg = pytest.importorskip("asyncpg")
    for error in (redis.ConnectionError(), redis.BusyLoadingError(), redis.MaxConnectionsError(), redis.TimeoutError()):
        assert ERRORS.category(error) is TRANSIENT
    assert ERRORS.category(redis.AuthenticationError()) is CLIENT
    for error in (asyncpg.ConnectionDoesNotExistError(), asyncpg.CannotConnectNowError(), asyncpg.InterfaceError("x")):
        assert ERRORS.category(error) is TRANSIENT
    assert ERRORS.classify(asyncpg.UniqueViolationError()) == (CLIENT, True)
    assert ERRORS.category(asyncpg.PostgresSyntaxError()) is SERVER


def test_the_real_http_clients_are_recognised() -> None:
    aiohttp = pytest.importorskip("aiohttp")
    requests = pytest.importorskip("requests")
    answer = requests.Response()
    for status, expected in ((404, CLIENT), (503, TRANSIENT), (500, SERVER)):
        answer.status_code = status
        assert ERRORS.category(requests.HTTPError(response=answer)) is expected
        assert ERRORS.category(aiohttp.ClientResponseError(None, (), status=status)) is expected
    for error in (requests.ConnectionError(), requests.ReadTimeout(), aiohttp.ServerDisconnectedError()):
        assert ERRORS.classify(error) == (TRANSIENT, False)
    for error in (aiohttp.ServerTimeoutError(), aiohttp.ClientOSError(), aiohttp.ClientPayloadError()):
        assert ERRORS.classify(error) == (TRANSIENT, False)
    assert ERRORS.category(requests.exceptions.SSLError()) is SERVER
    assert ERRORS.category(aiohttp.InvalidURL("x")) is CLIENT
    assert never_began(requests.ConnectTimeout())
    assert not never_began(requests.ReadTimeout())


# -- groups


def test_a_group_is_as_bad_as_its_worst_member() -> None:
    passing, ours, broken = TransientError(), ValueError(), RuntimeError()
    assert ERRORS.category(ExceptionGroup("g", [passing, TimeoutError()])) is TRANSIENT
    assert ERRORS.category(ExceptionGroup("g", [passing, ours])) is CLIENT
    assert ERRORS.category(ExceptionGroup("g", [ours, broken, passing])) is SERVER
    assert ERRORS.category(ExceptionGroup("g", [passing, ExceptionGroup("h", [broken])])) is SERVER


def test_a_group_is_an_answer_if_all_its_members_are() -> None:
    assert ERRORS.is_answer(ExceptionGroup("g", [ClientError(), HttpError(404)]))
    assert not ERRORS.is_answer(ExceptionGroup("g", [ClientError(), ValueError()]))


def test_a_group_whose_members_cannot_be_read_is_to_be_investigated() -> None:
    class Closed(ExceptionGroup[Exception]):
        @property
        def exceptions(self) -> Any:
            raise RuntimeError

    assert ERRORS.classify(Closed("g", [TransientError()])) == (SERVER, False)
    assert ERRORS.classify(ExceptionGroup("g", [Hostile()])) == (SERVER, False)


def test_a_deeply_nested_group_does_not_exhaust_the_stack() -> None:
    group: ExceptionGroup[Any] = ExceptionGroup("g", [TransientError()])
    for _ in range(5_000):
        group = ExceptionGroup("g", [group])
    assert ERRORS.category(group) is TRANSIENT
    while isinstance(group, ExceptionGroup):  # taken apart by hand: its destructor would recurse
        (group,) = group.exceptions


# -- extending the table


def test_an_empty_table_calls_everything_server() -> None:
    table = ErrorTable()
    for error in (Exception(), TransientError(), ClientError(), ValueError()):
        assert table.classify(error) == (SERVER, False)


def test_a_class_rule_holds_for_what_derives_from_it_and_the_nearest_class_decides() -> None:
    class Base(Exception): ...

    class Special(Base): ...

    class Other(Base): ...

    table = ErrorTable().add(Base, TRANSIENT).add(Special, CLIENT)
    assert [table.category(kind()) for kind in (Base, Special, Other)] == [TRANSIENT, CLIENT, TRANSIENT]
    table.add(Other, SERVER)
    assert table.category(Other()) is SERVER


def test_a_rule_for_a_class_replaces_the_one_before_also_after_it_was_used() -> None:
    table = ErrorTable().add(KeyError, TRANSIENT)
    assert table.classify(KeyError()) == (TRANSIENT, False)
    table.add(KeyError, CLIENT, answer=False)
    assert table.classify(KeyError()) == (CLIENT, False)


def test_client_means_an_answer_unless_said_otherwise() -> None:
    class Wrong(Exception): ...

    assert ErrorTable().add(Wrong, CLIENT).is_answer(Wrong())
    assert not ErrorTable().add(Wrong, CLIENT, answer=False).is_answer(Wrong())
    assert not ErrorTable().add(Wrong, TRANSIENT).is_answer(Wrong())
    assert ErrorTable().add(Wrong, TRANSIENT, answer=True).is_answer(Wrong())


def test_a_class_rule_of_your_own_is_stronger_than_a_status_on_the_error() -> None:
    assert ERRORS.category(HttpError(404)) is CLIENT
    assert ERRORS.copy().add(HttpError, TRANSIENT).category(HttpError(404)) is TRANSIENT


def test_predicates_come_before_classes_the_latest_first() -> None:
    table = ErrorTable().add(Exception, SERVER)
    table.add(lambda error: isinstance(error, OSError), TRANSIENT)
    table.add(lambda error: isinstance(error, ConnectionError), CLIENT)
    assert table.category(ConnectionError()) is CLIENT
    assert table.category(OSError()) is TRANSIENT
    assert table.category(ValueError()) is SERVER


def test_a_predicate_that_raises_does_not_mean_the_error() -> None:
    table = ErrorTable().add(ValueError, CLIENT).add(lambda error: error.missing > 1, TRANSIENT)  # type: ignore[attr-defined]
    assert table.category(ValueError()) is CLIENT


def test_a_name_is_a_rule_for_a_class_that_is_not_imported() -> None:
    table = ErrorTable().add("psycopg.OperationalError", TRANSIENT)
    assert table.category(foreign("OperationalError", "psycopg.errors")()) is TRANSIENT
    assert table.category(foreign("OperationalError", "other.errors")()) is SERVER


def test_a_copy_goes_its_own_way() -> None:
    copy = ERRORS.copy().add(KeyError, TRANSIENT).add(lambda error: isinstance(error, EOFError), CLIENT)
    assert copy.category(KeyError()) is TRANSIENT
    assert ERRORS.category(KeyError()) is CLIENT
    assert ERRORS.category(EOFError()) is TRANSIENT
    assert copy.copy().category(EOFError()) is CLIENT


@pytest.mark.parametrize("matches", [KeyboardInterrupt, int, "OperationalError", "a.b.C", None, 3])
def test_a_bad_rule_fails_by_name(matches: Any) -> None:
    with pytest.raises(ValueError, match="matches"):
        ErrorTable().add(matches, TRANSIENT)


def test_an_unknown_category_fails() -> None:
    with pytest.raises(ValueError, match="sometimes"):
        ErrorTable().add(ValueError, "sometimes")  # type: ignore[arg-type]
    assert ErrorTable().add(ValueError, "client").category(ValueError()) is CLIENT  # type: ignore[arg-type]


# -- memory and threads


def test_classes_made_at_run_time_do_not_pile_up() -> None:
    table = ERRORS.copy()
    for _ in range(3 * ErrorTable.MAX_TYPES):
        assert table.category(type("Fresh", (ConnectionError,), {})()) is TRANSIENT
    assert 0 < len(table._cache) <= ErrorTable.MAX_TYPES


def test_only_the_first_error_of_a_class_is_looked_up() -> None:
    class Seen(TransientError): ...

    table = ERRORS.copy()
    table.category(Seen())
    table._rules = {}
    assert table.category(Seen()) is TRANSIENT


def test_a_rule_added_while_others_look_up_is_not_lost() -> None:
    table, stop = ErrorTable(), threading.Event()
    kinds = [type(f"Kind{n}", (Exception,), {}) for n in range(300)]

    def look_up() -> None:
        while not stop.is_set():
            for kind in kinds:
                table.category(kind())

    def extend(part: list[type[Exception]]) -> None:
        for kind in part:
            table.add(kind, TRANSIENT)

    readers = [threading.Thread(target=look_up) for _ in range(4)]
    writers = [threading.Thread(target=extend, args=(kinds[n::4],)) for n in range(4)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join(10)
    stop.set()
    for thread in readers:
        thread.join(10)
    assert all(table.category(kind()) is TRANSIENT for kind in kinds)


# -- whether the operation began


@pytest.mark.parametrize(
    "error",
    [
        *(CircuitBreakerOpen("x"), BulkheadFull("x"), RateLimited("x", 1.0), QueueFull(), QueueUnavailable()),
        *(ConnectionRefusedError(), OSError(errno.ECONNREFUSED, ""), socket.gaierror(socket.EAI_NONAME, "")),
        OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] ..."),
        foreign("Socket", "mine", OSError)(errno.ECONNREFUSED, ""),
        foreign("ConnectError", "httpx")(),
        foreign("ClientConnectorError", "aiohttp.client_exceptions")(),
        foreign("Deeper", "mine", foreign("CannotConnectNowError", "asyncpg.exceptions"))(),
    ],
    ids=repr,
)
def test_it_never_began(error: Exception) -> None:
    assert never_began(error)


@pytest.mark.parametrize(
    "error",
    [
        *(
            TransientError(),
            TimeoutError(),
            CallTimeout("x", 1.0),
            ConnectionResetError(),
            ValueError(),
            HttpError(503),
        ),
        *(OSError(errno.EHOSTUNREACH, ""), OSError(), OSError("refused"), GrpcError(GrpcCode.UNAVAILABLE)),
        *(
            asyncio.CancelledError(),
            foreign("ConnectError", "mine")(),
            foreign("ConnectionError", "redis.exceptions")(),
        ),
        ValueError("Multiple exceptions: "),
    ],
    ids=repr,
)
def test_it_may_have_begun(error: BaseException) -> None:
    assert not never_began(error)


@pytest.mark.parametrize(("told", "expected"), [(True, True), (False, False), (1, True), ("no", True), (None, True)])
def test_an_error_can_say_itself_whether_it_was_sent(told: object, expected: bool) -> None:
    refused = foreign("Refused", "mine", ConnectionRefusedError)()
    refused.not_sent = told  # type: ignore[attr-defined]
    assert never_began(refused) is expected
    plain = foreign("Plain", "mine")()
    plain.not_sent = told  # type: ignore[attr-defined]
    assert never_began(plain) is (told is True)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers())))
def test_no_attribute_value_breaks_it(value: object) -> None:
    error = HttpError(value)
    error.status = error.code = error.response = error.errno = error.not_sent = value  # type: ignore[attr-defined]
    category, answer = ERRORS.classify(error)
    assert answer is (category is CLIENT)
    assert never_began(error) is (value is True)
