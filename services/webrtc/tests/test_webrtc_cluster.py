"""Two instances on one real Redis-compatible server, while it is well, killed, frozen and cut off (row W1)."""

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from random import Random

import pytest
import pytest_asyncio

from devstack import Stack, Topology
from resilience import CircuitState
from services.webrtc.tests.cluster_world import Instance, eventually, everything, instance, room, said
from webrtc.model import Member, RoomUnknown
from webrtc.outbound.cluster_redis import RedisCluster
from webrtc.usecases.cluster.merge import join
from webrtc.usecases.cluster.store import Change, Frame, Kind

pytestmark = pytest.mark.asyncio(loop_scope="module")

AWAY = pytest.mark.parametrize("fault", ["kill", "freeze"])
_numbers = count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    topology = Topology(only=frozenset({"redis"}))
    async with Stack(tmp_path_factory.mktemp("cluster"), topology, port_base=None) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def pair(stack: Stack) -> AsyncIterator[tuple[Instance, Instance]]:
    url, number = stack.url("redis"), next(_numbers)
    async with instance(f"a{number}", url) as one, instance(f"b{number}", url) as two:
        await eventually(lambda: one.name in two.cluster._peers.alive and two.name in one.cluster._peers.alive)
        yield one, two
    await stack.heal("redis")


async def shared_room(one: Instance, most: int = 10) -> str:
    made = room(next(_numbers) + 1_000, most=most)
    await one.rooms.create(made)
    return made.id


async def broken(stack: Stack, fault: str, *instances: Instance) -> None:
    await getattr(stack, fault)("redis")
    await eventually(lambda: all(one.cluster.alone for one in instances), 8.0)


async def healed(stack: Stack, *instances: Instance) -> None:
    await stack.heal("redis")
    await eventually(lambda: not any(one.cluster.alone for one in instances), 8.0)


async def test_a_roster_and_signals_over_two_instances(pair: tuple[Instance, Instance]) -> None:
    one, two = pair
    room_id = await shared_room(one)
    ann = await one.world.join("ann", room_id)
    bob = await two.world.join("bob", room_id)
    assert (await ann.until("joined"))["participant"]["id"] == bob.id
    await eventually(lambda: one.roster(room_id) == two.roster(room_id) == {ann.id, bob.id})
    for number in range(100):
        await ann.say("signal", to=bob.id, data={"n": number})
    assert [(await bob.until("signal"))["data"]["n"] for _ in range(100)] == list(range(100))
    await bob.say("media", audio=True, video=False)
    await said(ann, "updated", participant=(await bob.until("updated"))["participant"])
    await bob.say("leave")
    assert (await ann.until("left"))["participant"] == bob.id
    await eventually(lambda: one.roster(room_id) == {ann.id} and two.roster(room_id) == set())
    await ann.say("leave")
    await eventually(lambda: one.roster(room_id) == set())
    assert await one.cluster.members(room_id) == ()


async def test_the_scripts_keep_the_rule(pair: tuple[Instance, Instance]) -> None:
    """Whatever three instances write, in whatever order: what Redis has is what the pure rule says."""
    store, random = RedisCluster(pair[0].client, pair[0].reader), Random(11)
    for _ in range(60):
        room_id = room(next(_numbers) + 1_000).id
        truth: dict[str, Member] = {}
        for _ in range(8):
            who = Member(f"p{random.randint(1, 2)}", "u", "n", random.randint(1, 5), random.choice("xyz"))
            kind: Kind = random.choice(("put", "put", "drop"))
            (refused,) = await store.write(
                who.instance, [Frame(1, Change(kind, room_id, who.id, member=who, text="left"))]
            )
            there = truth.get(who.id)
            if kind == "put":
                truth = join(truth, {who.id: who})
                assert (refused.member if refused else None) == (
                    there if truth[who.id].instance != who.instance else None
                )
            elif there is not None and there.instance == who.instance and there.joined_at <= who.joined_at:
                del truth[who.id]
        (seen,) = await store.look("x", [room_id], watch=False)
        assert {member.id: member for member in seen.members} == truth


async def test_nothing_is_lost_or_out_of_order_over_a_short_cut(stack: Stack, pair: tuple[Instance, Instance]) -> None:
    one, two = pair
    room_id = await shared_room(one)
    ann, bob = await one.world.join("ann", room_id), await two.world.join("bob", room_id)
    await ann.until("joined")
    for number in range(150):
        await ann.say("signal", to=bob.id, data={"n": number})
        if number % 50 == 25:
            await one.client.client_kill_filter(_type="normal", skipme=True)
    assert [(await bob.until("signal"))["data"]["n"] for _ in range(150)] == list(range(150))
    assert not one.cluster.alone


async def test_what_was_read_takes_no_memory_in_redis(pair: tuple[Instance, Instance]) -> None:
    one, two = pair
    room_id = await shared_room(one)
    ann, bob = await one.world.join("ann", room_id), await two.world.join("bob", room_id)
    await ann.until("joined")
    for number in range(100):
        await ann.say("signal", to=bob.id, data={"n": number, "sdp": "x" * 8_000})
        assert (await bob.until("signal"))["data"]["n"] == number
    inbox = f"webrtc:inbox:{two.name}"

    async def small() -> bool:
        return bool(await one.client.xlen(inbox) < 20)

    await eventually(small)
    assert await one.client.xlen(inbox) > 0, "the last one says how far the inbox has come"


@AWAY
async def test_calls_go_on_without_redis_and_are_merged_after_it(
    stack: Stack, pair: tuple[Instance, Instance], fault: str
) -> None:
    one, two = pair
    room_id = await shared_room(one)
    ann, ann2 = await one.world.join("ann", room_id), await one.world.join("anna", room_id)
    bob = await two.world.join("bob", room_id)
    await said(ann2, "joined")
    await broken(stack, fault, one, two)
    assert (await said(ann, "degraded", single_instance=True))["single_instance"]
    await ann.say("signal", to=ann2.id, data={"n": 1})
    assert (await said(ann2, "signal"))["data"] == {"n": 1}
    await ann.say("signal", to=bob.id, data={"n": 2})
    refused = await said(ann, "error", error="PEER_UNREACHABLE")
    assert refused["retry_after"] > 0
    eve = await one.world.join("eve", room_id)
    dan = await two.world.join("dan", room_id)
    assert {one["id"] for one in eve.welcome["participants"]} == {ann.id, ann2.id, bob.id, eve.id}
    await ann2.say("leave")
    await healed(stack, one, two)
    everybody = {ann.id, bob.id, eve.id, dan.id}
    await eventually(lambda: one.roster(room_id) == two.roster(room_id) == everybody)
    await said(ann, "degraded", single_instance=False)
    await said(bob, "left", participant=ann2.id)
    joins = {message["participant"]["id"] for message in await everything(ann) if message["type"] == "joined"}
    assert joins >= {eve.id, dan.id}
    for sender, receiver in ((ann, dan), (dan, eve)):
        await sender.say("signal", to=receiver.id, data={"n": 3})
        await said(receiver, "signal", data={"n": 3})
    for client in (ann, bob, eve, dan):
        assert not [message for message in client.seen if message["type"] == "left" and message["reason"] == "lost"]


async def test_a_room_that_only_another_instance_holds_is_refused_with_a_time(
    stack: Stack, pair: tuple[Instance, Instance]
) -> None:
    one, two = pair
    room_id, idle = await shared_room(one), await shared_room(two)
    await two.rooms.get(room_id)
    await one.world.join("ann", room_id)
    await eventually(lambda: two.cluster._peers.holds(room_id))
    await broken(stack, "kill", one, two)
    unseen = room(next(_numbers) + 1_000).id
    for where in (room_id, unseen):
        client = await two.world.socket(two.world.token("bob", where))
        refused = await client.until("refused")
        assert (refused["error"], refused["retry_after"] >= 1) == ("ROOM_ELSEWHERE", True)
        assert await client.closed() == 4503
    await two.world.join("bob", idle)
    await healed(stack, one, two)
    await two.world.join("bob", room_id)
    await eventually(lambda: len(one.roster(room_id)) == 2)


async def test_who_came_back_on_the_other_instance_meanwhile_is_there_and_only_there(
    stack: Stack, pair: tuple[Instance, Instance]
) -> None:
    one, two = pair
    room_id = await shared_room(one)
    ann, bob = await one.world.join("ann", room_id), await two.world.join("bob", room_id)
    await broken(stack, "kill", one, two)
    two.world.clock.move(5)
    again = await two.world.socket(two.world.token("ann", room_id), resume=ann.welcome["resume"])
    await again.joined()
    assert again.id == ann.id
    await healed(stack, one, two)
    assert await ann.closed() == 4421
    one.hub.tick()
    assert one.roster(room_id) == set()
    assert two.roster(room_id) == {ann.id, bob.id}
    (member,) = [m for m in (await two.hub.members(room_id)) if m.id == ann.id]
    assert member.instance == two.name


async def test_a_room_deleted_by_its_owner_meanwhile_is_gone_everywhere(
    stack: Stack, pair: tuple[Instance, Instance]
) -> None:
    one, two = pair
    room_id = await shared_room(one)
    ann, bob = await one.world.join("ann", room_id), await two.world.join("bob", room_id)
    await broken(stack, "kill", one, two)
    deleted = await one.rooms.delete((await one.rooms.get(room_id)).value)
    assert [one.fallback for one in deleted.degradations] == ["memory-rooms"]
    one.hub.delete(room_id)
    assert await ann.closed() == 4410
    with pytest.raises(RoomUnknown):
        await one.rooms.get(room_id)
    await healed(stack, one, two)
    assert await bob.closed() == 4410
    for which in pair:
        with pytest.raises(RoomUnknown):
            await which.rooms.get(room_id)


async def test_rooms_made_meanwhile_are_everybodys_afterwards(stack: Stack, pair: tuple[Instance, Instance]) -> None:
    one, two = pair
    owner = f"owner{next(_numbers)}"
    before = room(next(_numbers) + 1_000, owner)
    await one.rooms.create(before)
    await broken(stack, "freeze", one, two)
    made, dropped = room(next(_numbers) + 1_000, owner), room(next(_numbers) + 1_000, owner)
    for new in (made, dropped):
        assert (await one.rooms.create(new)).degraded
    await one.rooms.delete(dropped)
    page = await one.rooms.page(owner, 10, "")
    assert (page.value, page.degraded) == ([made, before], True)
    ann = await one.world.join("ann", made.id)
    await healed(stack, one, two)
    assert (await two.rooms.get(made.id)).value == made
    assert (await two.rooms.page(owner, 10, "")).value == [made, before]
    bob = await two.world.join("bob", made.id)
    assert {member["id"] for member in bob.welcome["participants"]} == {ann.id, bob.id}


async def test_nobody_is_dropped_from_a_room_that_is_too_full_after_the_merge(
    stack: Stack, pair: tuple[Instance, Instance]
) -> None:
    one, two = pair
    room_id = await shared_room(one, most=3)
    await one.world.join("ann", room_id)
    await two.world.join("bob", room_id)
    await eventually(lambda: len(one.roster(room_id)) == len(two.roster(room_id)) == 2)
    await broken(stack, "kill", one, two)
    await one.world.join("eve", room_id)
    await two.world.join("dan", room_id)
    await healed(stack, one, two)
    await eventually(lambda: len(one.roster(room_id)) == len(two.roster(room_id)) == 4)
    late = await one.world.socket(one.world.token("late", room_id))
    assert (await late.until("refused"))["error"] == "ROOM_FULL"


async def test_members_of_a_killed_instance_are_lost_when_its_lease_ends(
    stack: Stack, pair: tuple[Instance, Instance]
) -> None:
    one, two = pair
    room_id = await shared_room(one)
    ann, bob = await one.world.join("ann", room_id), await two.world.join("bob", room_id)
    await ann.until("joined")
    await two.die()
    await one.client.delete(f"webrtc:instance:{two.name}")  # ten seconds have passed
    assert await said(ann, "left", participant=bob.id, reason="lost")
    await eventually(lambda: _reaped(one, two.name))
    assert two.name.encode() not in await one.client.smembers("webrtc:instances")


async def _reaped(one: Instance, name: str) -> bool:
    return not await one.client.exists(f"webrtc:held:{name}", f"webrtc:inbox:{name}")


async def test_participants_of_a_restarted_instance_are_awaited_but_not_reached_and_its_sfu_is_anothers(
    stack: Stack, pair: tuple[Instance, Instance]
) -> None:
    one, two = pair
    room_id = await shared_room(one)
    ann, bob = await one.world.join("ann", room_id), await two.world.join("bob", room_id)
    await ann.until("joined")
    assert await two.cluster.sfu_home(room_id) == await one.cluster.sfu_home(room_id) == two.name
    await two.die()
    async with instance(f"{two.name}'", stack.url("redis")) as again:
        assert await again.cluster.sfu_home(room_id) == again.name
        await eventually(lambda: not one.cluster._peers.reachable(two.name))
        await ann.say("signal", to=bob.id, data={})
        await said(ann, "error", error="PEER_UNREACHABLE")
        back = await again.world.socket(again.world.token("bob", room_id), resume=bob.welcome["resume"])
        assert {member["id"] for member in (await back.joined())["participants"]} == {ann.id, bob.id}
        await said(ann, "updated")
        await ann.say("signal", to=bob.id, data={"n": 1})
        await said(back, "signal", data={"n": 1})
        assert not [message for message in ann.seen if message["type"] == "left"]


async def test_a_redis_that_lost_everything_gets_it_from_the_instances(
    stack: Stack, pair: tuple[Instance, Instance]
) -> None:
    one, two = pair
    room_id = await shared_room(one)
    ann, bob = await one.world.join("ann", room_id), await two.world.join("bob", room_id)
    await ann.until("joined")
    await one.client.flushall()
    await eventually(lambda: _has(one, room_id))
    assert one.roster(room_id) == two.roster(room_id) == {ann.id, bob.id}
    eve = await two.world.join("eve", room_id)
    await said(ann, "joined")
    await eve.say("signal", to=ann.id, data={})
    await said(ann, "signal")


async def _has(one: Instance, room_id: str) -> bool:
    return bool(await one.client.hlen(f"webrtc:members:{room_id}") == 2)


async def test_the_first_joins_of_an_outage_wait_no_longer_than_the_row_allows(
    stack: Stack, pair: tuple[Instance, Instance]
) -> None:
    one, _ = pair
    rooms = [await shared_room(one) for _ in range(4)]
    await stack.freeze("redis")
    loop = asyncio.get_running_loop()
    for room_id in rooms:
        begun = loop.time()
        await one.world.join("ann", room_id)
        assert loop.time() - begun < one.policy.row.call_timeout + 0.3
    await eventually(lambda: one.cluster.alone, 8.0)
    assert one.policy.breaker.state is CircuitState.OPEN
    begun = loop.time()
    await one.world.join("bob", rooms[0])
    assert loop.time() - begun < 0.2
