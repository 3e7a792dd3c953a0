"""The short names, as the specification's users call them."""

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from resilience import (
    CallTimeout,
    CircuitBreaker,
    CircuitBreakerOpen,
    CircuitState,
    ClientError,
    FakeClock,
    GracefulDegradation,
    TransientError,
    get_graceful_degradation,
    get_with_timeout_and_fallback,
    graceful,
    retry_on_transient,
    retry_with_backoff,
    with_fallback,
)
from resilience.testing import testing_mode


class Dependency:
    """Fails `failures` times with `error`, then answers."""

    def __init__(self, failures: int = 0, error: Exception | None = None) -> None:
        self.failures = failures
        self.error = error or ConnectionError("refused")
        self.calls = 0

    async def __call__(self) -> str:
        return self.sync()

    def sync(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "primary"


async def stand_in() -> str:
    return "fallback"


async def forever() -> str:
    await asyncio.get_running_loop().create_future()
    return "never"


async def start(work: Callable[[], Awaitable[Any]]) -> asyncio.Task[Any]:
    async def run() -> Any:
        return await work()

    task = asyncio.get_running_loop().create_task(run())
    for _ in range(10):
        await asyncio.sleep(0)
    return task


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gd(clock: FakeClock) -> GracefulDegradation:
    return GracefulDegradation(clock=clock)


@pytest.fixture(autouse=True)
def _own_process_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graceful, "_shared", None)
    monkeypatch.delenv("CIRCUIT_BREAKER_FAILURE_THRESHOLD", raising=False)
    monkeypatch.delenv("CIRCUIT_BREAKER_RECOVERY_TIMEOUT_SECS", raising=False)


# -- execute_with_fallback


async def test_the_primary_serves_while_it_works(gd: GracefulDegradation) -> None:
    result = await gd.execute_with_fallback(
        Dependency(), stand_in, timeout_secs=60.0, max_retries=2, operation_name="my_operation"
    )
    assert result == "primary"
    status = gd.get_circuit_status("my_operation")
    assert status["status"] == "closed"
    assert status["failures"] == 0
    assert gd.get_all_circuit_statuses() == {"my_operation": status}


async def test_it_retries_after_one_two_and_four_seconds(gd: GracefulDegradation, clock: FakeClock) -> None:
    dependency = Dependency(failures=3)
    call = await start(lambda: gd.execute_with_fallback(dependency, stand_in, max_retries=3, operation_name="op"))
    for wait, calls in ((1.0, 1), (2.0, 2), (4.0, 3)):
        await clock.advance(wait - 0.001)
        assert dependency.calls == calls
        await clock.advance(0.001)
        assert dependency.calls == calls + 1
    assert await call == "primary"
    assert gd.get_circuit_status("op")["failures"] == 0, "one result per call"


async def test_the_fallback_serves_when_the_attempts_are_used_up(gd: GracefulDegradation, clock: FakeClock) -> None:
    dependency = Dependency(failures=99)
    call = await start(lambda: gd.execute_with_fallback(dependency, stand_in, operation_name="op"))
    await clock.advance(3.0)
    assert await call == "fallback"
    assert dependency.calls == 3
    assert gd.get_circuit_status("op")["failures"] == 1
    assert gd.get_circuit_status("op")["last_error"] == "ConnectionError"


async def test_without_a_fallback_the_last_error_comes_through(gd: GracefulDegradation) -> None:
    dependency = Dependency(failures=99)
    with pytest.raises(ConnectionError) as caught:
        await gd.execute_with_fallback(dependency, max_retries=0)
    assert caught.value is dependency.error


async def test_the_timeout_applies_to_each_attempt(gd: GracefulDegradation, clock: FakeClock) -> None:
    call = await start(lambda: gd.execute_with_fallback(forever, timeout_secs=5.0, max_retries=1))
    await clock.advance(5.0 + 1.0 + 5.0 - 0.001)
    assert not call.done()
    await clock.advance(0.001)
    with pytest.raises(TimeoutError):
        await call


async def test_an_open_circuit_uses_the_fallback_at_once(gd: GracefulDegradation, clock: FakeClock) -> None:
    dependency = Dependency(failures=5)
    for _ in range(5):
        assert await gd.execute_with_fallback(dependency, stand_in, max_retries=0, operation_name="op") == "fallback"
    assert gd.get_circuit_status("op")["status"] == "open"
    assert await gd.execute_with_fallback(dependency, stand_in, max_retries=0, operation_name="op") == "fallback"
    assert dependency.calls == 5
    with pytest.raises(CircuitBreakerOpen) as caught:
        await gd.execute_with_fallback(dependency, max_retries=0, operation_name="op")
    assert caught.value.name == "op"
    assert caught.value.retry_after == 300.0
    assert await gd.execute_with_fallback(dependency, max_retries=0, operation_name="another") == "primary"
    clock.move(300.0)
    assert gd.get_circuit_status("op")["status"] == "half_open"
    assert await gd.execute_with_fallback(dependency, max_retries=0, operation_name="op") == "primary"
    assert gd.get_circuit_status("op")["status"] == "closed"


async def test_a_success_resets_the_count(gd: GracefulDegradation) -> None:
    for _ in range(3):
        for _ in range(4):
            await gd.execute_with_fallback(Dependency(1), stand_in, max_retries=0, operation_name="op")
        assert gd.get_circuit_status("op")["failures"] == 4
        await gd.execute_with_fallback(Dependency(), stand_in, max_retries=0, operation_name="op")
        assert gd.get_circuit_status("op")["failures"] == 0


async def test_an_error_of_the_callers_is_not_retried(gd: GracefulDegradation) -> None:
    dependency = Dependency(99, PermissionError())
    assert await gd.execute_with_fallback(dependency, stand_in) == "fallback"
    assert dependency.calls == 1


async def test_an_answer_of_the_dependency_is_neither_hidden_nor_held_against_it(gd: GracefulDegradation) -> None:
    for _ in range(9):
        with pytest.raises(ClientError):
            await gd.execute_with_fallback(Dependency(9, ClientError("no such user")), stand_in, operation_name="op")
    assert gd.get_circuit_status("op") == {**gd.get_circuit_status("op"), "status": "closed", "failures": 0}


async def test_sync_functions_run_in_a_thread() -> None:
    gd = GracefulDegradation()
    here = threading.get_ident()
    assert await gd.execute_with_fallback(threading.get_ident) != here
    assert await gd.execute_with_fallback(Dependency(9).sync, lambda: "fallback", max_retries=0) == "fallback"
    assert await gd.execute_with_fallback(lambda: stand_in()) == "fallback", "a lambda that makes a coroutine"


async def test_a_sync_function_that_blocks_is_timed_and_blocks_nobody() -> None:
    gd = GracefulDegradation()
    released = threading.Event()
    result = await gd.execute_with_fallback(
        lambda: str(released.wait(30)), lambda: "fallback", timeout_secs=0.01, max_retries=0
    )
    assert result == "fallback"
    released.set()


async def test_both_errors_are_known_when_the_fallback_fails_too(gd: GracefulDegradation) -> None:
    async def broken() -> str:
        raise RuntimeError("the fallback")

    with pytest.raises(ConnectionError) as caught:
        await gd.execute_with_fallback(Dependency(9), broken, max_retries=0)
    assert any("RuntimeError" in note for note in caught.value.__notes__)


async def test_cancellation_serves_no_fallback_and_is_no_failure(gd: GracefulDegradation) -> None:
    call = await start(lambda: gd.execute_with_fallback(forever, stand_in, operation_name="op"))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert gd.get_circuit_status("op")["failures"] == 0


@pytest.mark.parametrize(
    ("settings", "named"), [({"max_retries": -1}, "max_retries"), ({"timeout_secs": 0}, "timeout_secs")]
)
async def test_bad_arguments_are_named(gd: GracefulDegradation, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        await gd.execute_with_fallback(stand_in, **settings)


def test_sync_code_has_it_too(gd: GracefulDegradation, clock: FakeClock) -> None:
    dependency = Dependency(failures=2)
    assert gd.execute_sync(dependency.sync, operation_name="op") == "primary"
    assert clock.monotonic() == 1003.0
    assert gd.execute_sync(Dependency(9).sync, lambda: "fallback", max_retries=0) == "fallback"
    with pytest.raises(ConnectionError):
        gd.execute_sync(Dependency(9).sync, max_retries=0)


# -- settings


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "2")
    monkeypatch.setenv("CIRCUIT_BREAKER_RECOVERY_TIMEOUT_SECS", "0.5")
    gd = GracefulDegradation()
    assert (gd.failure_threshold, gd.recovery_timeout) == (2, 0.5)
    assert (GracefulDegradation(failure_threshold=7, recovery_timeout=9).failure_threshold) == 7


@pytest.mark.parametrize("text", ["none", "0", "-3", "1.5.2"])
def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CIRCUIT_BREAKER_FAILURE_THRESHOLD", text)
    with pytest.raises(ValueError, match="CIRCUIT_BREAKER_FAILURE_THRESHOLD"):
        GracefulDegradation()
    with pytest.raises(ValueError, match="failure_threshold"):
        GracefulDegradation(failure_threshold=0)


def test_there_is_one_per_process_whoever_asks_first() -> None:
    found: list[GracefulDegradation] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait(10)
        found.append(get_graceful_degradation())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_threads_share_the_circuits(gd: GracefulDegradation) -> None:
    def work() -> None:
        for _ in range(50):
            gd.execute_sync(Dependency(9).sync, lambda: "fallback", max_retries=0, operation_name="shared")

    gd = GracefulDegradation(failure_threshold=10_000)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert gd.get_circuit_status("shared")["failures"] == 200


# -- with_fallback


async def test_a_decorated_function_falls_back_with_its_arguments() -> None:
    async def my_fallback(name: str, *, loud: bool = False) -> str:
        return f"fallback for {name}{'!' if loud else ''}"

    @with_fallback(fallback_fn=my_fallback, timeout_secs=30, max_retries=0)
    async def my_function(name: str, *, loud: bool = False) -> str:
        """Greets."""
        if name == "nobody":
            raise ConnectionError
        return f"hello {name}"

    assert await my_function("you") == "hello you"
    assert await my_function("nobody", loud=True) == "fallback for nobody!"
    assert my_function.__doc__ == "Greets."
    assert asyncio.iscoroutinefunction(my_function)
    (name,) = get_graceful_degradation().get_all_circuit_statuses()
    assert name.endswith("my_function")


async def test_a_fallback_that_takes_no_arguments_is_given_none() -> None:
    @with_fallback(lambda: "plain", max_retries=0, operation_name="named")
    async def my_function(_name: str) -> str:
        raise ConnectionError

    assert await my_function("x") == "plain"
    assert [*get_graceful_degradation().get_all_circuit_statuses()] == ["named"]


async def test_a_builtin_without_a_signature_is_tried_with_the_arguments() -> None:
    @with_fallback(dict, max_retries=0)
    async def my_function() -> dict[str, str]:
        raise ConnectionError

    assert await my_function() == {}


def test_a_sync_function_stays_sync(gd: GracefulDegradation) -> None:
    @gd.with_fallback(lambda value: -value, max_retries=0)
    def my_function(value: int) -> int:
        if value > 1:
            raise ConnectionError
        return value

    assert my_function(1) == 1
    assert my_function(2) == -2


# -- the small ones


async def test_a_breaker_as_the_specification_makes_it(clock: FakeClock) -> None:
    breaker = CircuitBreaker(failure_threshold=5, recovery_timeout=60, name="external_api", clock=clock)

    async def func(value: int) -> int:
        if value < 0:
            raise ConnectionError
        return value

    assert await breaker.call(func, 3) == 3
    for _ in range(5):
        with pytest.raises(ConnectionError):
            await breaker.call(func, -1)
    with pytest.raises(CircuitBreakerOpen):
        await breaker.call(func, 1)
    clock.move(60)
    assert await breaker.call(func, 1) == 1
    assert breaker.state == CircuitState.HALF_OPEN
    assert await breaker.call(func, 1) == 1
    assert str(breaker.state) == "closed"


async def test_retry_on_transient_waits_one_two_and_four_seconds(clock: FakeClock) -> None:
    dependency = Dependency(failures=3, error=TransientError("busy"))

    @retry_on_transient(max_retries=3, backoff=1.0, clock=clock)
    async def work() -> str:
        return await dependency()

    call = await start(work)
    await clock.advance(6.999)
    assert dependency.calls == 3
    await clock.advance(0.001)
    assert await call == "primary"
    again = Dependency(failures=99, error=TransientError("busy"))
    started = clock.monotonic()
    with pytest.raises(TransientError):
        retry_on_transient(clock=clock)(again.sync)()
    assert again.calls == 4
    assert clock.monotonic() - started == 7.0


async def test_retry_on_transient_leaves_all_else_alone() -> None:
    for error in (ValueError(), RuntimeError(), ClientError()):
        dependency = Dependency(99, error)
        with pytest.raises(type(error)):
            await retry_on_transient()(dependency)()
        assert dependency.calls == 1


async def test_retry_with_backoff_doubles_its_waits_up_to_the_longest(clock: FakeClock) -> None:
    times: list[float] = []

    async def failing() -> None:
        times.append(clock.monotonic())
        raise RuntimeError

    call = await start(lambda: retry_with_backoff(failing, max_retries=5, base_wait=1.0, max_wait=6.0, clock=clock))
    await clock.advance(60.0)
    with pytest.raises(RuntimeError):
        await call
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(waits) == 5
    for wait, expected in zip(waits, (1.0, 2.0, 4.0, 6.0, 6.0), strict=True):
        assert 0.9 * expected <= wait <= min(6.0, 1.1 * expected)
    assert len(set(waits)) == 5, "jitter"


async def test_retry_with_backoff_gives_up_at_once_when_the_caller_is_to_blame() -> None:
    dependency = Dependency(99, ValueError())
    with pytest.raises(ValueError):
        await retry_with_backoff(dependency)
    assert dependency.calls == 1
    with testing_mode():
        assert await retry_with_backoff(Dependency(5)) == "primary"


async def test_get_with_timeout_and_fallback(clock: FakeClock) -> None:
    assert await get_with_timeout_and_fallback(Dependency(), stand_in, timeout=5.0) == "primary"
    assert await get_with_timeout_and_fallback(Dependency(9), stand_in) == "fallback"
    assert await get_with_timeout_and_fallback(Dependency(9), lambda: "sync") == "sync"
    assert await get_with_timeout_and_fallback(Dependency(9), "a value") == "a value"
    call = await start(lambda: get_with_timeout_and_fallback(forever, stand_in, timeout=5.0, clock=clock))
    await clock.advance(5.0)
    assert await call == "fallback"
    assert await get_with_timeout_and_fallback(lambda: time.sleep(0), stand_in) is None  # type: ignore[func-returns-value]
    with pytest.raises(ClientError):
        await get_with_timeout_and_fallback(Dependency(9, ClientError()), stand_in)


async def test_a_timeout_without_a_fallback_is_named(gd: GracefulDegradation, clock: FakeClock) -> None:
    call = await start(
        lambda: gd.execute_with_fallback(forever, timeout_secs=1.0, max_retries=0, operation_name="prices")
    )
    await clock.advance(1.0)
    with pytest.raises(CallTimeout, match="prices did not answer within 1 s"):
        await call
