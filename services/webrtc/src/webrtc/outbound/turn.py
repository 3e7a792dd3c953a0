"""Asks TURN servers whether they really relay: an allocation with credentials like a participant's, given back at once.

A STUN binding would prove too little: coturn has been seen to answer it and to hang on everything else (its issue 894).
RFC 8656, sections 7 (Allocate) and 8 (a Refresh with lifetime 0 deletes); RFC 7065 for the URLs.
"""

import asyncio
import logging
import re
import ssl
from contextlib import suppress
from dataclasses import dataclass

from aioice.stun import TransactionError, TransactionFailed
from aioice.turn import TurnClientTcpProtocol, TurnClientUdpProtocol

from resilience import Clock
from webrtc.ports import RelayUnavailable
from webrtc.usecases.ice import turn_credentials

PROBE_USER = "auralink-probe"
CREDENTIAL_SECONDS = 60
ALLOCATE_LIMIT = 1.0
"""Seconds for one URL, resolving its name included; a little less than the row grants for all of them at once."""
ALLOCATION_SECONDS = 600
"""The least that servers grant (RFC 8656, section 7.2); the probe gives it back at once."""

_URL = re.compile(
    r"(?P<scheme>turns?):(?P<host>\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::(?P<port>\d{1,5}))?(?:\?transport=(?P<via>udp|tcp))?"
)

logging.getLogger("aioice.turn").setLevel(logging.WARNING)  # else two lines for each probe


@dataclass(frozen=True, slots=True)
class TurnAddress:
    """What a TURN URL says."""

    host: str
    port: int
    tcp: bool
    tls: bool


def address_of(url: str) -> TurnAddress:
    """RFC 7065: ``turn`` is port 3478 over UDP, ``turns`` port 5349 over TLS, unless it says otherwise.

    Raises ValueError.
    """
    found = _URL.fullmatch(url)
    if found is None or int(found["port"] or 1) > 65_535:
        raise ValueError("not a TURN URL such as turn:HOST:PORT?transport=udp")
    tls = found["scheme"] == "turns"
    port = int(found["port"] or (5349 if tls else 3478))
    return TurnAddress(found["host"].strip("[]"), port, tls or found["via"] == "tcp", tls)


class TurnServers:
    """See ports.Relays. DTLS (``turns`` over UDP) is asked over TLS: servers that speak one speak both."""

    def __init__(self, urls: tuple[str, ...], secret: str, clock: Clock) -> None:
        self._addresses = {url: address_of(url) for url in urls}
        self._secret = secret
        self._clock = clock

    async def relaying(self) -> tuple[str, ...]:
        """See the port."""
        results = await asyncio.gather(*map(self._allocate, self._addresses.values()), return_exceptions=True)
        errors = [error for error in results if error is not None]
        if len(errors) == len(results):
            raise errors[0]
        return tuple(url for url, error in zip(self._addresses, results, strict=True) if error is None)

    async def _allocate(self, address: TurnAddress) -> None:
        expires = int(self._clock.time()) + CREDENTIAL_SECONDS
        credentials = turn_credentials(self._secret, PROBE_USER, expires)
        client = (_Tcp if address.tcp else _Udp)((address.host, address.port), *credentials)
        try:
            async with asyncio.timeout(ALLOCATE_LIMIT) as client.limit:
                await _connect(client, address)
                await client.connect()
                await client.delete()
        except TransactionFailed as error:
            code, _ = error.response.attributes.get("ERROR-CODE", ("?", ""))
            raise RelayUnavailable(f"refused ({code})") from error
        except (TransactionError, OSError, ValueError) as error:
            raise RelayUnavailable("nobody listens" if client.gone else type(error).__name__) from error
        finally:
            client.end()


class _NoticesLoss:
    """Without it a dead server is noticed at the end of the time limit only."""

    limit: asyncio.Timeout | None = None
    gone = False
    refresh_task: asyncio.Task[None] | None

    def lost(self) -> None:
        if self.limit is not None:
            with suppress(RuntimeError):  # it is over already
                self.limit.reschedule(0)
                self.gone = True

    def end(self) -> None:
        """Leaves nothing behind, wherever it was interrupted."""
        if self.refresh_task is not None:
            self.refresh_task.cancel()
        if (transport := getattr(self, "transport", None)) is not None:
            transport.close()


class _Udp(_NoticesLoss, TurnClientUdpProtocol):
    def __init__(self, server: tuple[str, int], username: str, password: str) -> None:
        super().__init__(server, username, password, ALLOCATION_SECONDS, ALLOCATION_SECONDS)

    def error_received(self, exc: Exception) -> None:  # noqa: ARG002 - asyncio's interface
        """The kernel tells a connected socket that nobody listens (ICMP port unreachable)."""
        self.lost()


class _Tcp(_NoticesLoss, TurnClientTcpProtocol):
    def __init__(self, server: tuple[str, int], username: str, password: str) -> None:
        super().__init__(server, username, password, ALLOCATION_SECONDS, ALLOCATION_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost()


async def _connect(client: _Udp | _Tcp, address: TurnAddress) -> None:
    loop = asyncio.get_running_loop()
    if isinstance(client, _Udp):
        await loop.create_datagram_endpoint(lambda: client, remote_addr=(address.host, address.port))
    else:
        secured = ssl.create_default_context() if address.tls else None
        await loop.create_connection(lambda: client, address.host, address.port, ssl=secured)
