"""Settings of every service, read from the environment and from `.env`.

The rule kept here: a service with a wrong setting never starts half-configured. All mistakes are printed at
once, by the variable's name, with what is accepted instead; values are never printed, because the variable may
hold a secret. Exit status 2.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from dotenv import dotenv_values
from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from resilience.matrix import Row

from . import sentinel_url

DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZE_UNITS = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_SIZE_BY_LOWER = {unit.lower(): factor for unit, factor in SIZE_UNITS.items()}
_NUMBER_AND_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_OVERRIDE = re.compile(r"CIRCUIT_BREAKER_([A-Z0-9_]+)_(MAX_FAILURES|TIMEOUT)")

MIN_JWT_SECRET_BYTES = 32  # RFC 7518 section 3.2: an HS256 key is at least as long as the hash
MIN_ADMIN_TOKEN_BYTES = 16
_PLACEHOLDERS = ("change", "secret", "password", "example", "default", "test", "admin", "token", "xxxx", "1234")


def parse_duration(value: object) -> float:
    """Seconds from "250ms", "60s", "5m", "1h", "1d" or a bare number of seconds. Raises ValueError."""
    accepted = "a duration: a number with ms, s, m, h or d (250ms, 60s, 5m), or a bare number of seconds"
    return _quantity(value, {"": 1.0, **DURATION_UNITS}, accepted)


def parse_size(value: object) -> int:
    """Bytes from "100MB", "64KiB" or a bare number of bytes (MB is 10^6, MiB is 2^20). Raises ValueError."""
    accepted = "a size: a number with B, KB, MB, GB, KiB, MiB or GiB (100MB), or a bare number of bytes"
    return int(_quantity(value, {"": 1.0, **_SIZE_BY_LOWER}, accepted))


def _quantity(value: object, units: Mapping[str, float], accepted: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _NUMBER_AND_UNIT.fullmatch(str(value))
    if match is None:
        raise PydanticCustomError("quantity", f"expected {accepted}")
    factor = units.get(match[2].lower())
    if factor is None:
        raise PydanticCustomError("quantity_unit", f"unknown unit; expected {accepted}")
    return float(match[1]) * factor


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _not_blank(value: object) -> object:
    """A variable set to nothing means it is not set, as in compose files."""
    return None if isinstance(value, str) and not value.strip() else value


def _overrides(environment: Mapping[str, Any]) -> dict[str, float]:
    """The values of CIRCUIT_BREAKER_<DEPENDENCY>_MAX_FAILURES and _TIMEOUT by "<DEPENDENCY>_...". Raises ValueError."""
    found, errors = {}, []
    for key in sorted(environment):
        match = _OVERRIDE.fullmatch(key.upper())
        if match is None:
            continue
        try:
            found[f"{match[1]}_{match[2]}"] = _override(match[2], str(environment[key]))
        except ValueError as error:
            errors.append(f"{key.upper()}: {error}")
    if errors:
        raise PydanticCustomError("overrides", "\n  ".join(errors).replace("{", "{{").replace("}", "}}"))
    return found


def _override(kind: str, value: str) -> float:
    if kind == "TIMEOUT":
        seconds = parse_duration(value)
        if seconds <= 0:
            raise ValueError("must be greater than 0")
        return seconds
    if not value.strip().isdecimal() or int(value) < 1:
        raise ValueError("expected a whole number of at least 1")
    return int(value)


Seconds = Annotated[float, BeforeValidator(parse_duration)]
Bytes = Annotated[int, BeforeValidator(parse_size)]
CommaList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Url = Annotated[str | None, BeforeValidator(_not_blank)]
Port = Annotated[int, Field(ge=0, le=65535)]
PositiveSeconds = Annotated[Seconds, Field(gt=0)]
Overrides = Annotated[dict[str, float], BeforeValidator(_overrides)]


class ServiceSettings(BaseSettings):
    """What every service reads; a service adds its own fields. Names of variables are the fields' in capitals."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True)

    environment: Literal["development", "production"] = "development"
    http_host: str = "127.0.0.1"
    http_port: Port = 8080
    grpc_port: Port = 9080

    database_url: Url = Field(default=None, repr=False)
    redis_url: Url = Field(default=None, repr=False)
    jwt_secret: SecretStr
    admin_token: SecretStr

    otel_exporter_otlp_endpoint: Url = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    access_log: Literal["all", "errors", "off"] = "all"

    request_timeout: PositiveSeconds = 2.0
    slow_request: PositiveSeconds = 1.0
    """A request that takes longer is logged as slow."""
    drain_timeout: PositiveSeconds = 10.0
    max_body: Annotated[Bytes, Field(gt=0)] = 1_000_000

    mode_leave_after: Annotated[Seconds, Field(ge=0)] = 2.0
    """For how long all must be well before a mode is left: a circuit that flaps changes the mode once."""

    circuit_breaker_max_failures: Annotated[int, Field(ge=1)] = 5
    circuit_breaker_timeout: PositiveSeconds = 60.0
    circuit_overrides: Overrides = Field(default_factory=dict, validation_alias="circuit overrides")

    enable_cache_fallback: bool = True
    enable_memory_cache: bool = True
    memory_cache_size: Annotated[Bytes, Field(gt=0)] = 100_000_000
    memory_cache_ttl: PositiveSeconds = 300.0
    fallback_queue_ttl: PositiveSeconds = 3600.0
    fallback_queue_max_size: Annotated[int, Field(ge=1)] = 10_000
    fallback_queue_interval: PositiveSeconds = 30.0
    """How often the queue is looked at when nothing else has it drained."""

    @field_validator("log_level", "log_format", "access_log", "environment", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("jwt_secret", "admin_token")
    @classmethod
    def _strong(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        secret = value.get_secret_value()
        if not secret.strip():
            raise PydanticCustomError("secret", "is required and must not be empty")
        minimum = MIN_JWT_SECRET_BYTES if info.field_name == "jwt_secret" else MIN_ADMIN_TOKEN_BYTES
        if info.data.get("environment") == "production" and weakness(secret, minimum):
            raise PydanticCustomError("secret", f"is too weak for production: {weakness(secret, minimum)}")
        return value

    @field_validator("database_url", "redis_url")
    @classmethod
    def _no_public_password(cls, value: str | None, info: ValidationInfo) -> str | None:
        """How long a server's password must be is for its operator to say; an example's is none at all."""
        if info.data.get("environment") == "production" and _is_placeholder(_password(value or "")):
            raise PydanticCustomError("secret", "has a password too weak for production: it looks like a placeholder")
        return value

    @model_validator(mode="before")
    @classmethod
    def _collect_overrides(cls, values: Any) -> Any:
        return {**values, "circuit overrides": environment(cls)}

    def circuit(self, row: Row) -> tuple[int, float]:
        """Consecutive failures that open the row's circuit, and seconds it stays open.

        The environment's value for the dependency, else the row's own, else the platform's default.
        """
        prefix = re.sub(r"[^A-Z0-9]", "_", row.dependency.upper())
        failures = self.circuit_overrides.get(f"{prefix}_MAX_FAILURES", row.max_failures)
        seconds = self.circuit_overrides.get(f"{prefix}_TIMEOUT", row.open_seconds)
        return int(failures or self.circuit_breaker_max_failures), seconds or self.circuit_breaker_timeout


def postgres_url(value: str | None) -> str:
    """For a service that needs a database. Raises ValueError."""
    if not value or not value.startswith(("postgres://", "postgresql://", "postgresql+asyncpg://")):
        raise PydanticCustomError("database_url", "expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    return value


def redis_url(value: str | None) -> str:
    """For a service that needs Redis. Raises ValueError."""
    plain = "redis://[USER:PASSWORD@]HOST:PORT[/DATABASE]"
    if value and value.startswith(sentinel_url.SCHEMES):
        with contextlib.suppress(ValueError):
            sentinel_url.parse(value)
            return value
        raise PydanticCustomError("redis_url", "expected redis+sentinel://[:PASSWORD@]HOST:PORT,.../SERVICE[/DATABASE]")
    if value and value.startswith(("redis+cluster://", "rediss+cluster://")):
        raise PydanticCustomError("redis_url", f"is a Redis Cluster, which cannot be used; expected {plain}")
    if not value or not value.startswith(("redis://", "rediss://", "unix://")):
        raise PydanticCustomError("redis_url", f"expected {plain}, or redis+sentinel://HOST:PORT,.../SERVICE")
    return value


def weakness(secret: str, minimum: int) -> str:
    """Why a secret is weak, or "" when it is not."""
    if len(secret.encode()) < minimum:
        return f"at least {minimum} bytes are needed"
    if len(set(secret)) < 8:
        return "it repeats too few different characters"
    return "it looks like a placeholder" if _is_placeholder(secret) else ""


def _is_placeholder(secret: str) -> bool:
    return secret.lower().startswith(_PLACEHOLDERS)


def _password(url: str) -> str:
    try:
        return unquote(urlsplit(url).password or "")
    except ValueError:  # its text would quote the address
        return ""


def environment(cls: type[BaseSettings]) -> dict[str, str]:
    """All variables, for settings whose names are not known beforehand."""
    return {**_dotenv(cls), **os.environ}


def _dotenv(cls: type[BaseSettings]) -> dict[str, str]:
    path = cls.model_config.get("env_file")
    found = dotenv_values(str(path)) if path else {}
    return {key: value for key, value in found.items() if value is not None}


S = TypeVar("S", bound=ServiceSettings)


def load(cls: type[S], *, fail: Callable[[int], Any] = sys.exit) -> S:
    """Read the settings; on any mistake print all of them to stderr and exit with status 2."""
    try:
        return cls()  # type: ignore[call-arg] # the environment supplies the required ones
    except ValidationError as error:
        problems = _problems(error)
    except SettingsError:
        problems = ["a variable is not in the form its setting needs"]
    print("Configuration errors:\n  " + "\n  ".join(problems), file=sys.stderr)  # noqa: T201 - no logger exists yet
    fail(2)
    raise SystemExit(2)


def _problems(error: ValidationError) -> list[str]:
    problems = []
    for item in error.errors(include_input=False, include_url=False, include_context=False):
        name = ".".join(str(part) for part in item["loc"]).upper()
        message = "is required" if item["type"] == "missing" else item["msg"]
        problems.append(f"{name}: {message}" if item["type"] != "overrides" else message)
    return problems
