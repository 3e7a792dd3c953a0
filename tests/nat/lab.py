"""Two homes behind routers whose NAT can be changed, and a public network between them, in network namespaces.

The public end is the root namespace: it has the only address that both can reach. What connects all three is in a
namespace of its own, where no firewall of the machine (that of a container engine, for example) looks at what passes.
Needs root, iproute2 and nftables.
NAT kinds as RFC 4787 has them, in the terms of RFC 3489: what a mapping lets in (filtering) and whether it is the same
for every destination (mapping).
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import cast

from aioice import stun

PUBLIC = "198.51.100.1"  # TEST-NET-2, RFC 5737
BRIDGE = "auranat"
NETWORK = f"{BRIDGE}-net"
HOMES = {"a": 10, "b": 20}
KINDS = ("full", "address", "port", "symmetric")
LIMIT = 10.0  # s for one command

_OUT = """
table ip nat {{
  chain post {{ type nat hook postrouting priority srcnat; oif "wan" masquerade {how}; }}
  {pre}
}}
table ip f {{
  set seen {{ type ipv4_addr; flags dynamic, timeout; timeout 60s; }}
  chain forw {{
    type filter hook forward priority filter; policy drop;
    {drop}
    iif "lan" update @seen {{ ip daddr }}
    iif "lan" accept
    ct state established,related accept
    {accept}
  }}
  {inp}
}}
"""
# Unsolicited packets would leave entries in the connection table that make a cone behave like a symmetric NAT.
_NOTHING_NEW = 'chain inp { type filter hook input priority filter; iif "wan" ct state new drop; }'
_TO_CLIENT = (
    'chain pre {{ type nat hook prerouting priority dstnat; iif "wan" udp dport 1024-65535 dnat to 10.0.{home}.2; }}'
)


def missing() -> str:
    """What this machine lacks for the lab; empty: nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [program for program in ("ip", "nft") if shutil.which(program) is None]
    return f"not installed: {', '.join(absent)} (Debian: apt-get install iproute2 nftables)" if absent else ""


def rules(kind: str, home: int, *, udp: bool = True) -> str:
    """A router's table: "full", "address" or "port" (restricted) cone, or "symmetric"."""
    open_to = {"full": 'iif "wan" accept', "address": 'iif "wan" ip saddr @seen accept'}.get(kind, "")
    return _OUT.format(
        how="fully-random" if kind == "symmetric" else "",
        pre=_TO_CLIENT.format(home=home) if open_to else "",
        accept=open_to,
        inp="" if open_to else _NOTHING_NEW,
        drop="" if udp else "meta l4proto udp drop",
    )


async def run(*command: str, given: str = "") -> None:
    """Raises RuntimeError with what the program said."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    said, _ = await asyncio.wait_for(process.communicate(given.encode()), LIMIT)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {said.decode().strip()}")


async def _ip(*lines: str, inside: str = "") -> None:
    await run("ip", *(("-n", inside) if inside else ()), "-batch", "-", given="\n".join(lines) + "\n")


def client(home: str) -> str:
    """The namespace where a home's browser runs."""
    return f"{BRIDGE}-{home}"


def router(home: str) -> str:
    """The namespace of a home's router."""
    return f"{BRIDGE}-r{home}"


class Lab:
    """See `lab`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def nat(self, home: str, kind: str, *, udp: bool = True) -> None:
        """From now on the home's router does that kind of NAT; ``udp``: whether it lets any UDP through."""
        table = "flush ruleset\n" + rules(kind, HOMES[home], udp=udp)
        await run("ip", "netns", "exec", router(home), "nft", "-f", "-", given=table)

    def inside(self, home: str, program: str) -> str:
        """A program that runs the given one in the home."""
        path = self._directory / f"in-{home}"
        path.write_text(f'#!/bin/sh\nexec ip netns exec {client(home)} {program} "$@"\n')
        path.chmod(0o755)
        return str(path)

    async def build(self) -> None:
        """The networks, without NAT yet: nothing comes through."""
        await self.remove()
        await _ip(
            f"netns add {NETWORK}",
            f"link add {BRIDGE} type veth peer name public netns {NETWORK}",
            f"addr add {PUBLIC}/24 dev {BRIDGE}",
            f"link set {BRIDGE} up",
        )
        await _ip(
            "link add bridge type bridge", "link set bridge up", "link set public master bridge up", inside=NETWORK
        )
        for home, number in HOMES.items():
            await self._home(home, number)

    async def _home(self, home: str, number: int) -> None:
        inner, outer = client(home), router(home)
        await _ip(f"netns add {inner}", f"netns add {outer}")
        await _ip(
            f"link add home-{home} netns {NETWORK} type veth peer name wan netns {outer}",
            f"link add lan netns {outer} type veth peer name eth0 netns {inner}",
        )
        await _ip(f"link set home-{home} master bridge up", inside=NETWORK)
        await _ip(
            "link set lo up",
            f"addr add 10.0.{number}.1/24 dev lan",
            "link set lan up",
            f"addr add 198.51.100.{number}/24 dev wan",
            "link set wan up",
            f"route add default via {PUBLIC}",
            inside=outer,
        )
        await _ip(
            "link set lo up",
            f"addr add 10.0.{number}.2/24 dev eth0",
            "link set eth0 up",
            f"route add default via 10.0.{number}.1",
            inside=inner,
        )
        await run("ip", "netns", "exec", outer, "sysctl", "-qw", "net.ipv4.ip_forward=1")

    async def remove(self) -> None:
        """Everything, as far as it is there."""
        for name in (NETWORK, *map(client, HOMES), *map(router, HOMES)):
            with suppress(RuntimeError):
                await run("ip", "netns", "del", name)
        with suppress(RuntimeError):
            await run("ip", "link", "del", BRIDGE)


@asynccontextmanager
async def lab(directory: Path) -> AsyncIterator[Lab]:
    """The networks, removed at the end. ``directory``: for small programs that lead into a namespace."""
    made = Lab(directory)
    try:
        await made.build()
        yield made
    finally:
        await made.remove()


# --- what the public network offers


class _Stun(asyncio.DatagramProtocol):
    """Answers STUN bindings (RFC 8489): under which address the sender is seen."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        with suppress(ValueError):
            asked = stun.parse_message(data)
            answer = stun.Message(asked.message_method, stun.Class.RESPONSE, asked.transaction_id)
            answer.attributes["XOR-MAPPED-ADDRESS"] = addr
            self._transport.sendto(bytes(answer), addr)


@asynccontextmanager
async def stun_server() -> AsyncIterator[str]:
    """A STUN server at the public address; gives its URL."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(_Stun, local_addr=(PUBLIC, 0))
    try:
        yield f"stun:{PUBLIC}:{transport.get_extra_info('sockname')[1]}"
    finally:
        transport.close()


@asynccontextmanager
async def published(ports: Mapping[int, int]) -> AsyncIterator[None]:
    """``ports``: of the public address, and those of the loopback that are reached through them."""
    async with AsyncExitStack() as stack:
        for port, inner in ports.items():
            await stack.enter_async_context(await asyncio.start_server(partial(_forward, inner), PUBLIC, port))
        yield


async def _forward(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()
