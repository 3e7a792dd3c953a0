"""The Dashboard's own settings, beside those of every service."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from service_kit.settings import CommaList, Port, PositiveSeconds, ServiceSettings, Url

HostPort = Annotated[str, Field(pattern=r"^[^\s/]+:\d{1,5}$")]
_AROUND_CHAT = 1.0
"""Seconds of a chat request for what is not the provider's."""


class Settings(ServiceSettings):
    """Names of variables are the fields' in capitals."""

    http_port: Port = 8080
    grpc_port: Port = 9080

    database_replica_url: Url = Field(default=None, repr=False)
    """A streaming standby of the database; without it row D6 does not exist."""
    kafka_bootstrap_servers: CommaList = ()
    """HOST:PORT[,HOST:PORT]; without it no events are published and row D5 does not exist."""

    ai_core_grpc: HostPort = "127.0.0.1:9081"
    webrtc_grpc: HostPort = "127.0.0.1:9082"
    session_lifetime: Annotated[PositiveSeconds, Field(le=30 * 86_400)] = 86_400.0
    fallback_queue_interval: PositiveSeconds = 30.0
    """How often the queue is looked at when nothing else has it drained."""
    ai_provider_timeout: PositiveSeconds | None = None
    """What AI Core allows its providers, when that is more than usual."""

    @field_validator("database_url")
    @classmethod
    def _needs_database(cls, value: str | None) -> str:
        if not value or not value.startswith(("postgres://", "postgresql://", "postgresql+asyncpg://")):
            raise PydanticCustomError("database_url", "expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
        return value

    @field_validator("database_replica_url")
    @classmethod
    def _a_database(cls, value: str | None) -> str | None:
        return None if value is None else cls._needs_database(value)

    @field_validator("redis_url")
    @classmethod
    def _needs_redis(cls, value: str | None) -> str:
        if not value or not value.startswith(("redis://", "rediss://", "unix://")):
            raise PydanticCustomError("redis_url", "expected redis://[USER:PASSWORD@]HOST:PORT[/DATABASE]")
        return value

    @property
    def chat_limit(self) -> float | None:
        """Seconds for a chat request whose provider may take longer than requests usually do."""
        needed = (self.ai_provider_timeout or 0.0) + _AROUND_CHAT
        return needed if needed > self.request_timeout else None
