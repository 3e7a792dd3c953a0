"""Background work, closers, policies and modes of a runtime; tokens; logs."""

import asyncio
import io
import itertools
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import structlog

from resilience.clock import FakeClock
from resilience.modes import Mode
from service_kit import context, logs
from service_kit.errors import Unauthorized
from service_kit.runtime import ServiceRuntime
from service_kit.settings import ServiceSettings
from service_kit.tokens import MAX_REMEMBERED, TokenIssuer, TokenVerifier

SECRET = "kJ8#vQ2!mZ5^xR7&tB4*wN9(pL3)cH6%"


async def test_background_work_is_restarted_later_each_time(make_settings: Callable[..., ServiceSettings]) -> None:
    clock = FakeClock()
    runtime = ServiceRuntime("x", make_settings(access_log="off"), clock=clock)
    begun: list[float] = []

    async def work() -> None:
        begun.append(clock.monotonic())
        raise RuntimeError("again")

    runtime.background("work", work)
    await runtime.start()
    await clock.advance(4.0)
    waits = [round(later - earlier, 3) for earlier, later in itertools.pairwise(begun)]
    assert waits == [0.5, 1.0, 2.0]
    await runtime.close()


async def test_closers_run_in_reverse_and_bounded(runtime: ServiceRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service_kit.runtime.CLOSE_TIMEOUT", 0.05)
    closed: list[str] = []

    async def close(name: str) -> None:
        closed.append(name)
        if name == "raises":
            raise OSError
        if name == "hangs":
            await asyncio.sleep(60)

    for name in ("first", "raises", "hangs", "last"):
        runtime.on_close(lambda name=name: close(name), name)  # type: ignore[misc]
    await asyncio.wait_for(runtime.close(), 2)
    assert closed == ["last", "hangs", "raises", "first"]


async def test_the_prober_brings_a_row_back(runtime: ServiceRuntime, sample: Any, until: Any) -> None:
    well = False
    closed: list[bool] = []

    async def probe() -> None:
        if not well:
            raise ConnectionRefusedError

    policy = runtime.policy(sample.ROW, probe=probe, on_closed=lambda: closed.append(True))
    await runtime.start()
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            await policy.call(probe)
    assert runtime.tracker.mode.value == "degraded"
    assert runtime.status()[0]["circuit"] == "open"
    well = True
    await until(lambda: bool(closed))
    assert runtime.tracker.mode.value == "normal"
    with pytest.raises(ValueError, match="already"):
        runtime.policy(sample.ROW)


async def test_a_held_mode(runtime: ServiceRuntime) -> None:
    runtime.hold_mode(Mode.EMERGENCY)
    assert b'service_mode{mode="emergency",service="sample"} 1.0' in runtime.metrics.render()
    runtime.hold_mode(None)
    assert runtime.mode is Mode.NORMAL


async def test_a_mode_is_told_of_and_left_only_when_all_has_been_well_for_a_while(
    make_settings: Any, sample: Any
) -> None:
    clock = FakeClock()
    runtime = ServiceRuntime("sample", make_settings(mode_leave_after="2s"), clock=clock)
    told: list[tuple[str, str]] = []
    runtime.on_mode(lambda old, new: told.append((old.value, new.value)))
    breaker = runtime.policy(sample.ROW).breaker
    for _ in range(3):  # it flaps
        breaker.force_open()
        breaker.reset()
    assert runtime.mode is Mode.DEGRADED
    await runtime.start()
    await clock.advance(2.5)
    assert told == [("normal", "degraded"), ("degraded", "normal")]
    assert b'service_mode_changes_total{from="degraded",service="sample",to="normal"} 1.0' in runtime.metrics.render()
    await runtime.close()


def test_tokens() -> None:
    issuer, verifier = TokenIssuer(SECRET), TokenVerifier(SECRET)
    claims = verifier.verify(token := issuer.issue("u", "s", "admin"))
    assert (claims.user_id, claims.session_id, claims.role) == ("u", "s", "admin")
    assert verifier.verify(token) is claims
    header, payload, signature = token.split(".")
    forged = [
        "",
        "x" * 5000,
        "not a token",
        f"{header}.{payload}.{signature[:-2]}AA",
        f"{header}.{payload}.",
        "eyJhbGciOiJub25lIn0." + payload + ".",
        TokenIssuer(SECRET + "x").issue("u", "s"),
        issuer.issue("u", "s", lifetime=-60),
        "\ud800\x00é",
    ]
    for bad in forged:
        with pytest.raises(Unauthorized):
            verifier.verify(bad)


def test_a_remembered_token_still_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    issuer, verifier = TokenIssuer(SECRET, lifetime=60), TokenVerifier(SECRET)
    claims = verifier.verify(token := issuer.issue("u", "s"))
    monkeypatch.setattr("service_kit.tokens.time.time", lambda: claims.expires_at + 10)
    with pytest.raises(Unauthorized, match="expired"):
        verifier.verify(token)


def test_the_memory_of_tokens_is_bounded() -> None:
    issuer, verifier = TokenIssuer(SECRET), TokenVerifier(SECRET)
    for number in range(MAX_REMEMBERED + 50):
        verifier.verify(issuer.issue(f"u{number}", "s"))
    assert len(verifier._known) == MAX_REMEMBERED


@pytest.fixture
def log_lines() -> Any:
    root, kept = logging.getLogger(), list(logging.getLogger().handlers)
    stream = io.StringIO()
    before = structlog.get_config()
    logs.configure("sample", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = kept
    root.setLevel(logging.WARNING)
    structlog.configure(**before)


def test_logs_are_redacted_json(log_lines: Any) -> None:
    context.bind(context.RequestContext("req-9", traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
    token = TokenIssuer(SECRET).issue("u", "s")
    structlog.stdlib.get_logger("fresh").warning(
        "connect to postgresql://user:hunter2@db/x", api_key="hunter2", note=f"got {token}", header="Bearer hunter2"
    )
    logging.getLogger("library").error("failed for redis://:hunter2@host")
    first, second = log_lines()
    assert "hunter2" not in json.dumps([first, second])
    assert token not in first["note"]
    assert (first["service"], first["request_id"], first["level"]) == ("sample", "req-9", "warning")
    assert first["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert second["logger"] == "library"
    context.bind(None)


async def test_the_access_log_is_written_in_batches(until: Any) -> None:
    stream = io.BytesIO()
    access = logs.AccessLog("sample", "all", stream)
    state = context.RequestContext("r1")
    access.write(state, "GET", "/x", 200, 0.01)
    assert stream.getvalue() == b""
    await until(lambda: bool(stream.getvalue()))
    assert json.loads(stream.getvalue())["route"] == "/x"
    access.close()
    quiet = logs.AccessLog("sample", "errors", stream)
    quiet.write(state, "GET", "/ok", 200, 0.01)
    quiet.write(state, "GET", "/bad", 503, 0.01)
    quiet.close()
    assert [json.loads(line)["route"] for line in stream.getvalue().splitlines()] == ["/x", "/bad"]


async def test_a_row_of_several_circuits_is_found_by_its_own_id(runtime: ServiceRuntime, sample: Any) -> None:
    before = len(runtime.policies)
    for name in ("a:x", "b:x"):
        runtime.policy(replace(sample.ROW, id=f"kit.many.{name}", label="K9", dependency=name))
    assert [len(runtime.find_policies(name)) for name in ("kit.many", "K9", "a:x", "kit.many.b:x")] == [2, 2, 1, 1]
    assert runtime.find_policies("kit") == runtime.find_policies("many") == []
    assert len(runtime.policies) == before + 2
