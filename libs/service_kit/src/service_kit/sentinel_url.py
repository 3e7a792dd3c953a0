"""The address of a Redis that Sentinel watches over, taken apart.

    redis+sentinel://[[USER]:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/SERVICE[/DATABASE][?OPTION=VALUE...]

The hosts are the sentinels. User, password and database are Redis's own; the sentinels' are the options
`sentinel_username` and `sentinel_password`. With `rediss+sentinel` both are spoken to over TLS. All other options are
the client's (https://redis.readthedocs.io/en/stable/connections.html). Apart from the client, so that settings can be
checked without it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

SCHEMES = ("redis+sentinel://", "rediss+sentinel://")
SENTINEL_PORT = 26_379
_SENTINELS_OWN = ("sentinel_username", "sentinel_password")
_SERVICE = re.compile(r"[A-Za-z0-9._-]+")
"""What a server accepts as the name of a master."""


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """Who to ask, for what, and the way to whatever they name."""

    sentinels: tuple[tuple[str, int], ...]
    service: str
    server: str
    """As if the first sentinel were the server: redis:// or rediss://, with credentials, database and options."""
    username: str | None
    password: str | None

    def __repr__(self) -> str:
        return f"SentinelUrl({self.service!r}, {len(self.sentinels)} sentinels)"


def is_sentinel(url: str) -> bool:
    """Whether the address is of this kind."""
    return url.startswith(SCHEMES)


def parse(url: str) -> SentinelUrl:
    """Takes it apart. Raises ValueError, whose text does not quote the address: it may hold a password."""
    try:
        parts = urlsplit(url)
        credentials, at, hosts = parts.netloc.rpartition("@")
        sentinels = tuple(_host(one) for one in hosts.split(","))
        service, _, database = parts.path.strip("/").partition("/")
        own, options = _options(parts.query)
    except ValueError:
        raise ValueError("not an address") from None
    if not is_sentinel(url) or not _SERVICE.fullmatch(service) or not re.fullmatch(r"\d*", database):
        raise ValueError("expected redis+sentinel://HOST:PORT,.../SERVICE[/DATABASE]")
    host, port = sentinels[0]
    scheme = parts.scheme.partition("+")[0]
    server = f"{scheme}://{credentials}{at}{_bracketed(host)}:{port}/{database or 0}?{options}".removesuffix("?")
    return SentinelUrl(sentinels, service, server, own.get("sentinel_username"), own.get("sentinel_password"))


def _host(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(text)
    return unquote(parts.hostname), parts.port or SENTINEL_PORT


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else quote(host)


def _options(query: str) -> tuple[dict[str, str], str]:
    """The sentinels' own ones, and the rest as a query."""
    pairs = parse_qsl(query, keep_blank_values=True)
    own = {name: value for name, value in pairs if name in _SENTINELS_OWN}
    return own, urlencode([pair for pair in pairs if pair[0] not in own])
