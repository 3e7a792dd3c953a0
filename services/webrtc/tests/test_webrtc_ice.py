"""Row W2 without a network: what is given out while the relay's probe fails, and when that is noticed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio

from resilience import CircuitBreaker, CircuitState, FakeClock, Prober, RowPolicy
from webrtc.degradation import STUN_ONLY, TURN
from webrtc.ports import RelayUnavailable
from webrtc.usecases.ice import IceServers, turn_credentials
from webrtc.usecases.relay import Relay

STUN = ("stun:stun.test:3478",)
UDP, TLS = "turn:turn.test:3478?transport=udp", "turns:turn.test:5349"
TTL = 3_600
NOTICED = 3.0  # s


class Servers:
    """Relays whose state a test sets: what works, an error, or None: they hang."""

    def __init__(self) -> None:
        self.working: tuple[str, ...] | Exception | None = (UDP, TLS)
        self.asked = 0

    async def relaying(self) -> tuple[str, ...]:
        self.asked += 1
        if self.working is None:
            await asyncio.Event().wait()
        if isinstance(self.working, Exception):
            raise self.working
        assert self.working is not None
        return self.working


class World:
    """The row as the service puts it together, on a clock of the test's."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.servers = Servers()
        self.policy = RowPolicy(TURN, breaker=_breaker(self.clock), clock=self.clock)
        self.relay = Relay(self.servers, self.policy, (UDP, TLS), self.clock)
        self.ice = IceServers(STUN, self.relay, "north", TTL, self.clock)
        self.prober = Prober(self.policy, self.relay.probe, clock=self.clock)
        self.heard: list[bool] = []
        self.relay.on_change(self.heard.append)

    def urls(self) -> list[str]:
        return [url for server in self.ice.for_user("alice").value for url in server.urls]


def _breaker(clock: FakeClock) -> CircuitBreaker:
    return CircuitBreaker(
        TURN.id, failure_threshold=TURN.max_failures, recovery_timeout=30, success_threshold=1, clock=clock
    )


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    tasks = [asyncio.create_task(work) for work in (world.relay.watch(), world.prober.run())]
    await world.clock.advance(0.1)
    yield world
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_credentials_follow_the_rest_scheme() -> None:
    username, credential = turn_credentials("north", "alice", 1_700_003_600)
    assert username == "1700003600:alice"
    assert base64.b64decode(credential) == hmac.digest(b"north", username.encode(), hashlib.sha1)


def test_without_turn_there_is_stun_and_without_stun_nothing() -> None:
    clock = FakeClock()
    bare = IceServers(STUN, None, "", TTL, clock)
    assert [server.urls for server in bare.for_user("alice").value] == [STUN]
    assert not bare.for_user("alice").degraded
    assert (bare.grant("alice").expires_in, bare.grant("alice").stun_only) == (0, False)
    assert IceServers((), None, "", TTL, clock).for_user("alice").value == ()


async def test_while_it_relays_everybody_gets_credentials_of_their_own(world: World) -> None:
    stun, turn = world.ice.for_user("alice").value
    assert (stun.urls, stun.username, stun.credential) == (STUN, "", "")
    assert (turn.username, turn.credential) == turn_credentials("north", "alice", int(world.clock.time()) + TTL)
    assert turn.urls == (UDP, TLS)
    grant = world.ice.grant("alice")
    assert (grant.expires_in, grant.stun_only) == (TTL, False)
    assert world.heard == []


@pytest.mark.parametrize("fault", [RelayUnavailable("refused (401)"), None], ids=["refuses", "hangs"])
async def test_its_loss_is_known_within_three_seconds(world: World, fault: Exception | None) -> None:
    world.servers.working = fault
    await world.clock.advance(NOTICED)
    served = world.ice.for_user("alice")
    assert [server.urls for server in served.value] == [STUN]
    assert [(one.row, one.fallback) for one in served.degradations] == [(TURN.id, STUN_ONLY)]
    assert (world.ice.grant("alice").stun_only, world.ice.grant("alice").expires_in) == (True, 0)
    assert world.heard == [False]
    await world.clock.advance(5.0)
    assert world.policy.breaker.state is CircuitState.OPEN
    assert world.policy.status().fallback == STUN_ONLY
    assert world.heard == [False], "told once"


async def test_it_is_given_out_again_when_it_is_back(world: World) -> None:
    world.servers.working = RelayUnavailable("nobody listens")
    await world.clock.advance(10.0)
    world.servers.working = (UDP, TLS)
    await world.clock.advance(1.5)
    assert world.urls() == [*STUN, UDP, TLS]
    assert world.heard == [False, True]
    assert not world.ice.for_user("alice").degraded


async def test_a_url_that_does_not_relay_is_left_out(world: World) -> None:
    world.servers.working = (UDP,)
    await world.clock.advance(2.0)
    assert world.urls() == [*STUN, UDP]
    assert not world.ice.for_user("alice").degraded
    assert world.heard == [False]


async def test_held_open_by_an_operator_it_is_not_given_out(world: World) -> None:
    world.policy.breaker.force_open()
    assert world.urls() == [*STUN]
    asked = world.servers.asked
    await world.clock.advance(10.0)
    assert world.servers.asked == asked
    world.policy.breaker.reset()
    await world.clock.advance(2.0)
    assert UDP in world.urls()


async def test_credentials_are_renewed_before_they_end() -> None:
    world = World()
    pushed: list[float] = []
    task = asyncio.create_task(world.ice.renew(lambda: pushed.append(world.clock.monotonic())))
    begun = world.clock.monotonic()
    await world.clock.advance(TTL * 2)
    task.cancel()
    assert [at - begun for at in pushed] == [TTL * 0.8, TTL * 1.6]
