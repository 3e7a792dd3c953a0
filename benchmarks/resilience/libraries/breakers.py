"""Libraries that are a circuit breaker and nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.resilience.libraries.base import WINDOW, Forms, Function, Library, Listener, given, ignoring, span
from benchmarks.resilience.shapes import BLOCK, CALL, DECORATED, KEYED_CALL, SYNC_BLOCK, Form


class PyBreaker(Library):
    name = "pybreaker"
    imports = "pybreaker"
    notes = "its async form needs tornado; `with breaker.calling()` around the await does not, and is faster"

    def breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        lib = import_module("pybreaker")
        breaker = lib.CircuitBreaker(**given(reset_timeout=seconds, fail_max=threshold))
        if listener:
            told = type("Told", (lib.CircuitBreakerListener,), {"state_change": ignoring(listener)})
            breaker.add_listener(told())
        return breaker

    def forms(self, breaker: Any, function: Function) -> Forms:
        return (Form(SYNC_BLOCK, breaker.calling, function),)

    def state_of(self, breaker: Any) -> Any:
        return breaker.current_state

    def failures(self, breaker: Any) -> int:
        count: int = breaker.fail_counter
        return count

    def sync(self, breaker: Any, function: Any) -> Any:
        return breaker(function)


class AioBreaker(Library):
    name = "aiobreaker"
    imports = "aiobreaker"

    def breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        lib = import_module("aiobreaker")
        breaker = lib.CircuitBreaker(**given(timeout_duration=span(seconds), fail_max=threshold))
        if listener:
            told = type("Told", (lib.CircuitBreakerListener,), {"state_change": ignoring(listener)})
            breaker.add_listener(told())
        return breaker

    def forms(self, breaker: Any, function: Function) -> Forms:
        return Form(DECORATED, breaker(function)), Form(CALL, breaker.call_async, function)

    def state_of(self, breaker: Any) -> Any:
        return breaker.current_state.name

    def failures(self, breaker: Any) -> int:
        count: int = breaker.fail_counter
        return count

    def sync(self, breaker: Any, function: Any) -> Any:
        return breaker(function)


class AsyncBreaker(Library):
    name = "asyncbreaker"
    imports = "asyncbreaker"

    def breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        lib = import_module("asyncbreaker")
        breaker = lib.CircuitBreaker(**given(timeout_duration=span(seconds), fail_max=threshold))
        if listener:

            async def state_change(*_args: Any) -> None:
                listener()

            breaker.add_listener(type("Told", (import_module("asyncbreaker.listener").Listener,), {})())
            breaker.listeners[0].state_change = state_change
        return breaker

    def forms(self, breaker: Any, function: Function) -> Forms:
        return Form(DECORATED, breaker(function)), Form(CALL, breaker.call, function)

    def state_of(self, breaker: Any) -> Any:
        return breaker._state.state

    def failures(self, breaker: Any) -> int:
        count: int = breaker._state_storage._fail_counter
        return count


class CircuitBreaker(Library):
    name = "circuitbreaker"
    imports = "circuitbreaker"

    def breaker(self, seconds: float | None = None, threshold: int | None = None) -> Any:
        lib = import_module("circuitbreaker")
        return lib.CircuitBreaker(**given(recovery_timeout=seconds, failure_threshold=threshold))

    def forms(self, breaker: Any, function: Function) -> Forms:
        return (Form(DECORATED, breaker(function)),)

    def state_of(self, breaker: Any) -> Any:
        return breaker.state

    def failures(self, breaker: Any) -> int:
        count: int = breaker.failure_count
        return count

    def sync(self, breaker: Any, function: Any) -> Any:
        return breaker(function)


class AioCircuitBreaker(Library):
    name = "aiocircuitbreaker"
    imports = "aiocircuitbreaker"

    def breaker(self, seconds: float | None = None, threshold: int | None = None) -> Any:
        lib = import_module("aiocircuitbreaker")
        return lib.CircuitBreaker(**given(recovery_timeout=seconds, failure_threshold=threshold))

    def forms(self, breaker: Any, function: Function) -> Forms:
        return (Form(DECORATED, breaker(function)),)

    def state_of(self, breaker: Any) -> Any:
        return breaker.state

    def failures(self, breaker: Any) -> int:
        count: int = breaker.failure_count
        return count


class Purgatory(Library):
    name = "purgatory"
    imports = "purgatory"

    def __init__(self) -> None:
        super().__init__()
        self._lib = import_module("purgatory")
        self._shared = self._lib.AsyncCircuitBreakerFactory()

    async def breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        factory = self._factory(self._lib.AsyncCircuitBreakerFactory, seconds, threshold, listener)
        breaker = await factory.get_breaker("dependency")
        breaker.made_by = factory
        return breaker

    def sync_breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        factory = self._factory(self._lib.SyncCircuitBreakerFactory, seconds, threshold, listener)
        breaker = factory.get_breaker("dependency")
        breaker.made_by = factory
        return breaker

    @staticmethod
    def _factory(kind: Any, seconds: float | None, threshold: int | None, listener: Listener | None) -> Any:
        factory = kind(**given(default_ttl=seconds, default_threshold=threshold))
        if listener:

            def told(_name: str, event: str, _payload: Any) -> None:
                if event == "state_changed":
                    listener()

            factory.add_listener(told)
        return factory

    def forms(self, breaker: Any, function: Function) -> Forms:
        return Form(BLOCK, breaker, function), Form(DECORATED, breaker.made_by("dependency")(function))

    def sync(self, breaker: Any, function: Any) -> Any:
        return breaker.made_by("dependency")(function)

    def state_of(self, breaker: Any) -> Any:
        return breaker.context.state

    def failures(self, breaker: Any) -> int:
        count: int = breaker.context.failure_count
        return count

    async def idle(self, name: str) -> Any:
        return await self._shared.get_breaker(name)


class Fluxgate(Library):
    name = "fluxgate"
    imports = "fluxgate fluxgate.trippers"
    notes = "probed with a minimum of 5 calls and all trials permitted; by itself it wants 100 and admits at random"

    def __init__(self) -> None:
        super().__init__()
        self._lib = import_module("fluxgate")

    def breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        return self._lib.AsyncCircuitBreaker(**self._settings(seconds, threshold, listener))

    def sync_breaker(
        self, seconds: float | None = None, threshold: int | None = None, listener: Listener | None = None
    ) -> Any:
        return self._lib.CircuitBreaker(**self._settings(seconds, threshold, listener))

    @staticmethod
    def _settings(seconds: float | None, threshold: int | None, listener: Listener | None) -> dict[str, Any]:
        if seconds is None and threshold is None:
            return {}
        trippers = import_module("fluxgate.trippers")
        return {
            "window": import_module("fluxgate.windows").CountWindow(min(threshold or 100, WINDOW)),
            "retry": import_module("fluxgate.retries").Cooldown(seconds or 60.0),
            "permit": import_module("fluxgate.permits").All(),
            "tripper": trippers.MinRequests(threshold or 5) & trippers.FailureRate(0.5),
            "listeners": (ignoring(listener),) if listener else (),
        }

    def window(self, function: Function) -> Forms:
        trippers = import_module("fluxgate.trippers")
        rule = trippers.MinRequests(10) & (trippers.FailureRate(0.5) | trippers.SlowRate(0.5, threshold=1.0))
        return self.forms(self._lib.AsyncCircuitBreaker(tripper=rule), function)

    def forms(self, breaker: Any, function: Function) -> Forms:
        return Form(CALL, breaker.call, function), Form(DECORATED, breaker(function))

    def sync(self, breaker: Any, function: Any) -> Any:
        return breaker(function)

    def state_of(self, breaker: Any) -> Any:
        return breaker.info().state

    def failures(self, breaker: Any) -> int:
        count: int = breaker.info().metrics.failure_count
        return count


class Keel(Library):
    name = "keel-circuit-breaker"
    imports = "keel_circuit_breaker"
    notes = "one object for all keys, for one event loop; a key costs nothing before its first failure"
    keyed = True

    def breaker(self, seconds: float | None = None, threshold: int | None = None) -> Any:
        lib = import_module("keel_circuit_breaker")
        return lib.CircuitBreaker(**given(cooldown_seconds=seconds, failure_threshold=threshold))

    def forms(self, breaker: Any, function: Function) -> Forms:
        return (Form(KEYED_CALL, breaker.call, (function, "dependency")),)

    def state_of(self, breaker: Any) -> Any:
        return breaker.get_status("dependency")

    def failures(self, breaker: Any) -> int:
        count: int = breaker._states["dependency"].failure_count
        return count
