"""The allocation probe of row W2 against a real coturn: alive, frozen, dead, with another secret, or half alive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aioice import stun

from devstack.components import turn
from devstack.stack import Stack
from devstack.topology import Topology
from resilience import SYSTEM_CLOCK
from webrtc.degradation import TURN
from webrtc.outbound.turn import TurnAddress, TurnServers, address_of
from webrtc.ports import RelayUnavailable

needs_coturn = pytest.mark.skipif(not turn.installed(), reason="coturn is not installed (apt install coturn)")
Served = tuple[Stack, str, str]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("turn:turn.test", TurnAddress("turn.test", 3478, tcp=False, tls=False)),
        ("turn:10.0.0.1:99?transport=udp", TurnAddress("10.0.0.1", 99, tcp=False, tls=False)),
        ("turn:[2001:db8::1]:99?transport=tcp", TurnAddress("2001:db8::1", 99, tcp=True, tls=False)),
        ("turns:turn.test", TurnAddress("turn.test", 5349, tcp=True, tls=True)),
        ("turns:turn.test:443?transport=tcp", TurnAddress("turn.test", 443, tcp=True, tls=True)),
    ],
)
def test_urls(url: str, address: TurnAddress) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize("url", ["stun:h:1", "turn:", "turn:h:70000", "turn:h?transport=sctp", "turn:a b", "turn:::1"])
def test_what_is_no_turn_url(url: str) -> None:
    with pytest.raises(ValueError, match="TURN URL"):
        address_of(url)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def coturn(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """A stack with coturn alone, its URL and its secret."""
    topology = Topology(only=frozenset({"turn"}), turn=True, proxied=False)
    async with Stack(tmp_path_factory.mktemp("turn"), topology, port_base=None) as stack:
        yield stack, stack.url("turn"), stack.state.secret("turn")


@needs_coturn
@pytest.mark.asyncio(loop_scope="module")
async def test_it_relays_over_udp_and_over_tcp(coturn: Served) -> None:
    _, url, secret = coturn
    urls = (url, f"{url}?transport=tcp", "turn:127.0.0.1:9?transport=tcp")
    assert await TurnServers(urls, secret, SYSTEM_CLOCK).relaying() == urls[:2]


@needs_coturn
@pytest.mark.asyncio(loop_scope="module")
async def test_another_secret_is_noticed_at_once(coturn: Served) -> None:
    _, url, _ = coturn
    begun = time.monotonic()
    with pytest.raises(RelayUnavailable, match="401"):
        await TurnServers((url,), "another", SYSTEM_CLOCK).relaying()
    assert time.monotonic() - begun < TURN.call_timeout, "nothing was waited for"


@needs_coturn
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("via", ["udp", "tcp"])
async def test_frozen_dead_and_healed(coturn: Served, via: str) -> None:
    stack, url, secret = coturn
    servers = TurnServers((f"{url}?transport={via}",), secret, SYSTEM_CLOCK)
    await stack.freeze("turn")
    begun = time.monotonic()
    with pytest.raises(RelayUnavailable):
        await servers.relaying()
    assert time.monotonic() - begun < TURN.call_timeout + 0.3
    await stack.kill("turn")
    begun = time.monotonic()
    with pytest.raises(RelayUnavailable, match=r"nobody listens|Refused"):
        await servers.relaying()
    assert time.monotonic() - begun < TURN.call_timeout, "nothing was waited for"
    assert (await stack.heal("turn")).accepts
    assert await servers.relaying()


class BindingOnly(asyncio.DatagramProtocol):
    """A server as coturn's issue 894 has it: bindings are answered, allocations are challenged and then forgotten."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        asked = stun.parse_message(data)
        answer = stun.Message(asked.message_method, stun.Class.RESPONSE, asked.transaction_id)
        if asked.message_method == stun.Method.BINDING:
            answer.attributes["XOR-MAPPED-ADDRESS"] = addr
        elif "USERNAME" in asked.attributes:
            return
        else:
            answer.message_class = stun.Class.ERROR
            answer.attributes |= {"ERROR-CODE": (401, "Unauthorized"), "REALM": "lab", "NONCE": b"n"}
        self._transport.sendto(bytes(answer), addr)


async def test_a_server_that_answers_bindings_only_does_not_relay() -> None:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(BindingOnly, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    with pytest.raises(RelayUnavailable, match="TimeoutError"):
        await TurnServers((f"turn:127.0.0.1:{port}",), "s", SYSTEM_CLOCK).relaying()
    transport.close()
