"""The Dashboard's own settings, beside those of every service."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from service_kit.settings import CommaList, Port, PositiveSeconds, ServiceSettings, Url, postgres_url, redis_url


class Rate(NamedTuple):
    """``amount`` requests in ``seconds``, ``burst`` of them at once."""

    amount: float
    seconds: float
    burst: int


_RATE = re.compile(r"(\d{1,9})/([smh]):(\d{1,9})")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_MOST_PER_SECOND = 1_000_000


def parse_rate(value: object) -> Rate | None:
    """RATE/s:BURST (or /m, /h), or None for "off". Raises ValueError."""
    if value is None or isinstance(value, Rate):
        return value
    given = str(value).strip().lower()
    if given == "off":
        return None
    match = _RATE.fullmatch(given)
    if match is None or not int(match[1]) or not int(match[3]):
        raise PydanticCustomError("rate", "expected RATE/s:BURST, RATE/m:BURST or RATE/h:BURST (200/s:400), or off")
    rate = Rate(float(match[1]), _UNITS[match[2]], int(match[3]))
    if rate.amount / rate.seconds > _MOST_PER_SECOND:
        raise PydanticCustomError("rate_high", "more than a million a second cannot be counted; off means no limit")
    return rate


def _network(value: str) -> str:
    try:
        return str(ip_network(value, strict=False))
    except ValueError:
        raise PydanticCustomError("network", "expected networks such as 10.0.0.0/8, separated by commas") from None


RateLimit = Annotated[Rate | None, BeforeValidator(parse_rate)]
HostPort = Annotated[str, Field(pattern=r"^[^\s/]+:\d{1,5}$")]
_CHAIN_SECONDS = 30.0
"""What AI Core allows its providers unless it is told otherwise."""
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
    slow_query: PositiveSeconds = 0.1
    """From how many seconds on a statement of the database counts as slow."""
    report_direct: PositiveSeconds = 0.8
    """How long the answer to a request for a report waits for the report itself."""
    report_places: Annotated[int, Field(ge=1, le=8)] = 2
    """Reports that one instance makes at a time."""
    report_lease: PositiveSeconds = 8.0
    """After how many seconds of silence another instance takes a report over."""
    pricing_capacity: Annotated[int, Field(ge=1)] = 1000
    """Participants that a pricing zone has room for, unless its row says otherwise."""
    rate_limit_user: RateLimit = Rate(200, 1.0, 400)
    """RATE/s:BURST (or /m, /h) of one user's requests, by all instances together; off: no limit."""
    rate_limit_address: RateLimit = Rate(1000, 1.0, 2000)
    """The same of the requests that come from one address."""
    rate_limit_login: RateLimit = Rate(5, 1.0, 300)
    """The same of the logins and registrations from one address."""
    trusted_proxies: CommaList = ()
    """Networks (CIDR) of proxies whose X-Forwarded-For says where a request comes from."""
    ai_provider_timeout: PositiveSeconds | None = None
    """What AI Core allows a provider; it matters where that is more than the chain's usual time."""
    ai_chain_timeout: PositiveSeconds | None = None
    """What AI Core allows all its providers together; None: 30 s. Chat, translation and speech may take so long, and a
    second more, whatever REQUEST_TIMEOUT is; a lost AI Core is noticed much earlier."""

    _needs_database = field_validator("database_url")(postgres_url)

    @field_validator("database_replica_url")
    @classmethod
    def _a_database(cls, value: str | None) -> str | None:
        return None if value is None else postgres_url(value)

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_network(one) for one in value)

    _needs_redis = field_validator("redis_url")(redis_url)

    @property
    def chat_limit(self) -> float | None:
        """Seconds for a request whose provider may take longer than requests usually do; None: those of any request."""
        chain = self.ai_chain_timeout or max(_CHAIN_SECONDS, self.ai_provider_timeout or 0.0)
        needed = chain + _AROUND_CHAT
        return needed if needed > self.request_timeout else None
