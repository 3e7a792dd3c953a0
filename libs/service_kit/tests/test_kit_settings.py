"""Settings: units, all errors at once, no secret ever shown."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resilience.matrix import Priority, Row
from service_kit.settings import ServiceSettings, parse_duration, parse_size, weakness

ROW = Row(
    id="x.ai", label="X1", service="x", dependency="ai-core", title="AI", priority=Priority.P2, impact="low",
    max_failures=3, open_seconds=30.0, call_timeout=1.0, fallbacks=(), promise="", recovery="", data_loss="",
    user_text="",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60s", 60),
        ("250ms", 0.25),
        ("5m", 300),
        ("1h", 3600),
        ("1d", 86400),
        ("2", 2),
        ("1.5 s", 1.5),
        (3, 3),
        ("5S", 5),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "size"), [("100MB", 10**8), ("64KiB", 65536), ("10", 10), ("1gb", 10**9), ("5 B", 5)])
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "s", "-1s", "60x", "1e3", "five", "1s2", "nan", True])
def test_durations_that_are_none(text: object) -> None:
    with pytest.raises(ValueError, match="ms, s, m, h or d"):
        parse_duration(text)


def test_circuit_from_environment(
    make_settings: Callable[..., ServiceSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_settings().circuit(ROW) == (3, 30.0)
    monkeypatch.setenv("CIRCUIT_BREAKER_AI_CORE_MAX_FAILURES", "9")
    monkeypatch.setenv("CIRCUIT_BREAKER_AI_CORE_TIMEOUT", "250ms")
    assert make_settings().circuit(ROW) == (9, 0.25)


def test_secrets_do_not_show(make_settings: Callable[..., ServiceSettings]) -> None:
    settings = make_settings(database_url="postgresql://u:hunter2@h/d", jwt_secret="s3cr3t" * 8)
    assert "hunter2" not in repr(settings)
    assert "s3cr3t" not in repr(settings)


def test_weak_secrets_pass_in_development_only(make_settings: Callable[..., ServiceSettings]) -> None:
    make_settings(jwt_secret="short", admin_token="a")
    with pytest.raises(ValueError, match="too weak for production"):
        make_settings(jwt_secret="short", environment="production")
    assert weakness("a" * 64, 32)
    assert weakness("change-me-0123456789-0123456789-abc", 32)
    assert weakness("kJ8#vQ2!mZ5^xR7&tB4*wN9(pL3)cH6%", 32) == ""


@pytest.mark.parametrize("field", ["database_url", "redis_url"])
def test_a_published_password_of_a_server_passes_in_development_only(
    make_settings: Callable[..., ServiceSettings], field: str
) -> None:
    strong = {"jwt_secret": "kJ8vQ2mZ5xR7tB4wN9pL3cH6kJ8vQ2mZ", "admin_token": "kJ8vQ2mZ5xR7tB4wN9pL"}
    public, own = "scheme://user:change%2Dme@host:1/0", "scheme://user:p7f3@host:1/0"
    make_settings(**{field: public})
    make_settings(**strong | {field: own}, environment="production")
    with pytest.raises(ValueError, match="password too weak for production") as refused:
        make_settings(**strong | {field: public}, environment="production")
    assert "change" not in str(refused.value)


def load_with(directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "from service_kit.settings import load, ServiceSettings; load(ServiceSettings)"
    clean = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, cwd=directory, capture_output=True, text=True, timeout=30
    )


def test_all_errors_at_once_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MEMORY_CACHE_SIZE=12parsecs\nADMIN_TOKEN=dotenv-hunter2-token\n")
    done = load_with(
        tmp_path,
        REQUEST_TIMEOUT="60x",
        HTTP_PORT="hunter2",
        ENVIRONMENT="moon",
        JWT_SECRET="",
        CIRCUIT_BREAKER_POSTGRES_TIMEOUT="soon",
        CIRCUIT_BREAKER_REDIS_MAX_FAILURES="0",
    )
    assert done.returncode == 2
    names = ("REQUEST_TIMEOUT", "HTTP_PORT", "ENVIRONMENT", "JWT_SECRET", "MEMORY_CACHE_SIZE")
    for name in (*names, "CIRCUIT_BREAKER_POSTGRES_TIMEOUT", "CIRCUIT_BREAKER_REDIS_MAX_FAILURES"):
        assert name in done.stderr
    assert "unknown unit; expected a duration: a number with ms, s, m, h or d" in done.stderr
    assert "KiB" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_missing_secrets_are_an_error_in_development_too(tmp_path: Path) -> None:
    done = load_with(tmp_path)
    assert done.returncode == 2
    assert "JWT_SECRET: is required" in done.stderr
    assert "ADMIN_TOKEN: is required" in done.stderr
