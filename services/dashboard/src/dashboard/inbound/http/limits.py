"""Request limits at the door: whose they are, what a client is told of them, and the refusal.

The fields ``RateLimit`` and ``RateLimit-Policy`` are those of draft-ietf-httpapi-ratelimit-headers. While a limit is
off (row D2, dashboard.redis) nothing is said of it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

from fastapi import Request

from dashboard.ports import RequestLimit
from resilience import Decision, Quota, rate_limit_headers
from service_kit import context
from service_kit.errors import RateLimited

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_UNKNOWN = "unknown"
_SUBSCRIBER = 64
"""Bits of an IPv6 address that say who it is: whoever has one has all of its /64."""


class Addresses:
    """Where a request comes from: the peer, or what proxies say that we trust. ``trusted``: networks (CIDR)."""

    def __init__(self, trusted: Sequence[str] = ()) -> None:
        self._trusted = [ipaddress.ip_network(network) for network in trusted]

    def of(self, request: Request) -> str:
        """The client's address; an IPv6 one stands for its /64."""
        peer = request.scope.get("client")
        host = peer[0] if peer else ""
        if self._trusted and self._is_trusted(address := _address(host)):
            return _subscriber(str(self._client(request, address)))
        return _subscriber(host)

    def _client(self, request: Request, peer: Address | None) -> Address | None:
        """The right-most address that no trusted proxy has; what is left of that anybody could have written."""
        found = peer
        for text in reversed(",".join(request.headers.getlist("x-forwarded-for")).split(",")):
            address = _address(text.strip())
            if address is None:
                break
            found = address
            if not self._is_trusted(address):
                break
        return found

    def _is_trusted(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._trusted)


class RequestLimits:
    """The limits of requests per user and per address, and of logins and registrations per address; None: no limit."""

    def __init__(
        self,
        user: RequestLimit | None = None,
        address: RequestLimit | None = None,
        login: RequestLimit | None = None,
        addresses: Addresses | None = None,
    ) -> None:
        self._user = user
        self._address = address
        self._login = login
        self._addresses = addresses or Addresses()

    async def request(self, request: Request, user_id: str) -> None:
        """Counts a request of somebody logged in. Raises RateLimited."""
        told: list[tuple[str, str]] = []
        try:
            if self._address is not None:
                await _count(self._address, self._addresses.of(request), told)
            if self._user is not None:
                await _count(self._user, user_id, told)
        finally:
            _tell(told)

    async def login(self, request: Request) -> None:
        """Counts an attempt to log in or to register. Raises RateLimited."""
        told: list[tuple[str, str]] = []
        try:
            if self._login is not None:
                await _count(self._login, self._addresses.of(request), told)
        finally:
            _tell(told)


async def _count(limit: RequestLimit, key: str, told: list[tuple[str, str]]) -> None:
    decision = limit.take_now(key)
    if decision is None:
        decision = await limit.take(key)
        if decision is None:
            return
    if not decision.allowed:
        told.append(_fields(limit.name, limit.quota, decision))
        raise RateLimited("Too many requests.", retry_after=decision.retry_after or 1.0)
    quick = limit.quota.interval <= 1.0  # gives back one a second or more: what remains is all that is told
    fields = _usual(limit.name, limit.quota, decision.remaining) if quick else None
    told.append(fields or _fields(limit.name, limit.quota, decision))


def _fields(name: str, quota: Quota, decision: Decision) -> tuple[str, str]:
    """The policy, and how the client stands."""
    headers = rate_limit_headers(name, quota, decision)
    return headers["RateLimit-Policy"], headers["RateLimit"]


@lru_cache(8192)
def _usual(name: str, quota: Quota, remaining: int) -> tuple[str, str]:
    return _fields(name, quota, Decision(True, 0.0, float(remaining), 0.0))


def _tell(told: list[tuple[str, str]]) -> None:
    if len(told) == 2:  # nearly always
        (policy, standing), (other, others) = told
        context.add_header("ratelimit-policy", f"{policy}, {other}")
        context.add_header("ratelimit", f"{standing}, {others}")
    elif told:
        context.add_header("ratelimit-policy", told[0][0])
        context.add_header("ratelimit", told[0][1])


def _address(text: str) -> Address | None:
    """An address, with or without a port, as proxies write it."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(4096)
def _subscriber(host: str) -> str:
    address = _address(host)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _SUBSCRIBER), strict=False))
    return _UNKNOWN if address is None else str(address)
