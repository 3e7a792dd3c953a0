"""The SFU with real peers on loopback: encrypted media over UDP, encoded and decoded by real codecs."""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiortc.rtp import RtcpByePacket

from services.webrtc.tests.sfu_peers import Camera, Microphone, Peer, Town, eventually
from webrtc.outbound.sfu import peer as peers

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_town() -> AsyncIterator[Town]:
    town = Town()
    yield town
    await town.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def town(one_town: Town) -> AsyncIterator[Town]:
    yield one_town
    await one_town.next_room()


def publication(town: Town, peer: Peer) -> Any:
    """The SFU's end of what somebody publishes."""
    rooms: Any = town.sfu._rooms.result() if town.sfu._rooms else None
    return rooms._rooms[peer.room].members[peer.member].publication


async def test_everybody_gets_what_the_others_publish(town: Town) -> None:
    anna = await town.enter("anna", Camera(), Microphone())
    ben = await town.enter("ben", Camera())
    cleo = await town.enter("cleo")
    await cleo.flows("anna")
    await cleo.flows("anna", "audio")
    await cleo.flows("ben")
    await ben.flows("anna")
    await anna.flows("ben")
    assert ben.seen("ben") == 0
    assert town.sfu.counts.tracks == 3
    assert town.sfu.counts.subscribers == 3


async def test_a_late_subscriber_sees_a_picture_within_half_a_second(town: Town) -> None:
    anna = await town.enter("anna", Camera(fps=20))
    early = await town.enter("early")
    await early.flows("anna", frames=10)
    seconds = []
    for name in ("late 1", "late 2", "late 3"):  # the machine may be busy with something else for one of them
        late = await town.enter(name)
        await late.flows("anna", frames=1)
        seconds.append(late.first_frame["anna", "video"])
    assert sorted(seconds)[1] <= 0.5
    assert anna.told(pc="pub", publish=True)


async def test_an_m_line_is_used_again_when_its_track_is_gone(town: Town) -> None:
    anna = await town.enter("anna", Camera())
    cleo = await town.enter("cleo")
    await cleo.flows("anna")
    await town.leave(anna)
    await eventually(lambda: cleo.mids == {})
    await town.enter("ben", Camera())
    await cleo.flows("ben")
    assert list(cleo.mids) == ["0"]
    assert len(cleo.sub.getTransceivers() if cleo.sub else []) == 1
    assert len({one["epoch"] for one in cleo.told(pc="sub")}) == 1


async def test_a_publisher_adds_a_track_and_gives_one_up(town: Town) -> None:
    anna = await town.enter("anna", Microphone())
    cleo = await town.enter("cleo")
    await cleo.flows("anna", "audio")
    assert anna.pub is not None
    camera = anna.pub.addTransceiver(Camera(), direction="sendonly")
    await anna.offer()
    await cleo.flows("anna")
    camera.direction = "inactive"
    await anna.offer()
    await eventually(lambda: list(cleo.mids.values()) == [("anna", "audio")])
    await cleo.flows("anna", "audio")


async def test_a_subscriber_that_vanishes_disturbs_nobody(town: Town) -> None:
    await town.enter("anna", Camera())
    ben = await town.enter("ben")
    cleo = await town.enter("cleo")
    await ben.flows("anna")
    await cleo.flows("anna")
    await ben.vanish()
    await cleo.flows("anna", frames=10)


async def test_a_track_that_nobody_watches_is_drained(town: Town) -> None:
    anna = await town.enter("anna", Camera(fps=60), Microphone())
    before = town.sfu.counts.received
    await eventually(lambda: town.sfu.counts.received > before + 60)
    for one in publication(town, anna)._incoming.values():
        receiver = one.transceiver.receiver
        assert receiver._RTCRtpReceiver__decoder_queue.qsize() == 0
        assert receiver.track._queue.qsize() <= 1
        assert not one.feed.outlets
    decoders = [thread for thread in threading.enumerate() if "decoder" in thread.name]
    assert decoders == []


async def test_a_camera_that_was_off_comes_back(town: Town) -> None:
    """A browser says BYE when nothing is sent for the moment, which ends a track for aiortc's own decoder."""
    anna = await town.enter("anna", Camera())
    cleo = await town.enter("cleo")
    await cleo.flows("anna")
    assert anna.pub is not None
    sender = anna.pub.getSenders()[0]
    await sender._send_rtcp([RtcpByePacket(sources=[sender._ssrc])])
    await cleo.flows("anna", frames=10)


async def test_a_new_publication_replaces_the_one_before(town: Town) -> None:
    anna = await town.enter("anna", Camera())
    cleo = await town.enter("cleo")
    await cleo.flows("anna")
    anna.tracks = [Camera()]
    await anna.publish()
    assert anna.pub_epoch == 2
    await eventually(lambda: town.sfu.counts.tracks == 1 and publication(town, anna).epoch == 2)
    await cleo.flows("anna", frames=10)


async def test_either_pc_is_made_anew_when_asked(town: Town) -> None:
    anna = await town.enter("anna", Camera())
    cleo = await town.enter("cleo")
    await cleo.flows("anna")
    first = cleo.sub_epoch
    await cleo.say(pc="sub", restart=True)
    await eventually(lambda: cleo.sub_epoch > first)
    await cleo.flows("anna")
    await anna.say(pc="pub", restart=True)
    assert (await anna.hears(closed="restart"))["epoch"] == 1
    await eventually(lambda: cleo.mids == {})


async def test_a_failed_handshake_ends_that_pc_only(town: Town) -> None:
    await town.enter("anna", Camera())
    ben = await town.enter("ben")
    await ben.flows("anna")
    cleo = town.person("cleo")
    cleo.change = lambda sdp: re.sub(r"(a=fingerprint:\S+) ..:..", r"\1 00:00", sdp)
    await town.sfu.enter(town.room, "cleo", publishes=False)
    assert (await cleo.hears(closed="failed"))["pc"] == "sub"
    await ben.flows("anna")
    cleo.change = str
    await cleo.say(pc="sub", restart=True)
    await cleo.flows("anna")


async def test_who_never_answers_is_told_so(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "CONNECT_TIMEOUT", 0.3)
    await town.enter("anna", Camera())
    cleo = town.person("cleo")
    cleo.answering = False
    await town.sfu.enter(town.room, "cleo", publishes=False)
    await cleo.hears(pc="sub", closed="timeout")
    assert town.sfu.counts.subscribers == 0


async def test_who_closes_its_pc_is_no_failure(town: Town) -> None:
    anna = await town.enter("anna", Camera())
    cleo = await town.enter("cleo")
    await cleo.flows("anna")
    assert anna.pub is not None
    await anna.pub.close()
    await anna.hears(pc="pub", closed="ended")
    await eventually(lambda: cleo.mids == {})


async def test_bad_signals_are_answered_and_lose_nothing(town: Town) -> None:
    anna = await town.enter("anna", Camera())
    cleo = await town.enter("cleo")
    await cleo.flows("anna")
    assert anna.pub is not None
    sdp = anna.pub.localDescription.sdp
    bad: list[tuple[bytes, str]] = [
        (b"", "malformed"),
        (b"[]", "malformed"),
        (b'{"pc":"other"}', "malformed"),
        (b"[" * 60_000, "malformed"),
        (b" " * 70_000, "malformed"),
        (_offer(""), "description"),
        (_offer("v=0\r\nm=video nonsense"), "description"),
        (_offer(sdp.replace("VP8", "AV1")), "description"),
        (_offer(sdp.replace("m=video", "m=application")), "description"),
        (_offer(re.sub("a=ice-pwd.*\r\n", "", sdp)), "description"),
        (_offer(re.sub("a=fingerprint.*\r\n", "", sdp)), "description"),
        (_offer(re.sub("a=ice-ufrag:.*", "a=ice-ufrag:newx", sdp)), "description"),
        (_offer(sdp + sdp[sdp.index("m=video") :] * 9), "description"),
        (_offer(re.sub("a=rtcp-mux\r\n", "", sdp), epoch=7), "description"),
        (_offer(sdp, kind="answer"), "description"),
        (json.dumps({"pc": "sub", "epoch": 1, "description": {"type": "answer", "sdp": "x"}}).encode(), ""),
        (b'{"pc":"pub","epoch":1,"candidate":{"candidate":"nonsense"}}', ""),
    ]
    for data, error in bad:
        before = len(anna.told(pc="pub"))
        await town.sfu.signal(anna.room, "anna", data)
        if error:
            await eventually(lambda before=before: len(anna.told(pc="pub")) > before)  # type: ignore[misc]
            assert anna.heard[-1]["error"] == error, data[:80]
    await cleo.flows("anna")
    assert len({one["epoch"] for one in cleo.told(pc="sub")}) == 1


def _offer(sdp: str, epoch: int = 1, kind: str = "offer") -> bytes:
    return json.dumps({"pc": "pub", "epoch": epoch, "description": {"type": kind, "sdp": sdp}}).encode()


async def test_who_may_not_publish_is_refused(town: Town) -> None:
    cleo = await town.enter("cleo")
    await cleo.say(pc="pub", epoch=1, description={"type": "offer", "sdp": "x"})
    await cleo.hears(error="not_allowed")
    assert not cleo.told(publish=True)


async def test_a_flood_of_signals_is_cut_off(town: Town) -> None:
    cleo = await town.enter("cleo")
    await asyncio.gather(*(cleo.say(pc="sub", epoch=1, candidate=None) for _ in range(400)))
    await cleo.hears(error="limit")
    await town.enter("anna", Camera())
    await cleo.flows("anna")


async def test_a_stranger_is_told_so_and_ends_are_repeatable(town: Town) -> None:
    cleo = await town.enter("cleo")
    await town.sfu.leave(town.room, "cleo")
    await town.sfu.leave(town.room, "cleo")
    await cleo.say(pc="sub", restart=True)
    await cleo.hears(error="unavailable")
    await town.sfu.close("no such room")


async def test_it_ends_whatever_is_going_on() -> None:
    town = Town(ports=range(42_100, 42_140))
    anna = await town.enter("anna", Camera())
    cleo = await town.enter("cleo")
    await cleo.flows("anna")
    for pc in (anna.pub, cleo.sub):
        assert pc is not None
        remote = pc.remoteDescription.sdp
        assert 42_100 <= int(re.findall(r"a=candidate:\S+ 1 udp \d+ 127.0.0.1 (\d+)", remote)[0]) < 42_140
    await asyncio.wait_for(town.sfu.aclose(), 5)
    assert town.sfu._thread is not None
    assert town.sfu._thread._thread not in threading.enumerate()
    await town.sfu.enter(town.room, "late", publishes=True)
    await anna.close()
    await cleo.close()


async def test_an_sfu_that_cannot_start_says_so_and_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town()

    async def broken() -> None:
        raise ImportError("no libvpx")

    with monkeypatch.context() as patch:
        patch.setattr(town.sfu, "_open", broken)
        cleo = await town.enter("cleo")
        await cleo.hears(error="unavailable")
    anna = await town.enter("anna", Camera())
    await anna.hears(publish=True)
    await town.aclose()


async def test_who_leaves_in_the_moment_of_connecting_leaves_nothing_behind(town: Town) -> None:
    await town.enter("anna", Camera())
    before = await consenting(town)
    for number in range(8):
        hasty = await town.enter(f"hasty {number}", Camera())
        await hasty.hears(pc="sub")
        await asyncio.sleep(0.005 * number)  # at any point of the handshake
        await town.leave(hasty)
    for _ in range(300):
        if await consenting(town) <= before + 2:  # Anna's, connected by now
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{await consenting(town)} ICE connections go on, {before} before")


async def consenting(town: Town) -> int:
    """ICE connections of the SFU that are alive."""

    async def count() -> int:
        return sum(task.get_coro().__qualname__ == "Connection.query_consent" for task in asyncio.all_tasks())  # type: ignore[union-attr]

    assert town.sfu._thread is not None
    return int(await town.sfu._thread.run(count()))


async def test_who_enters_again_begins_anew(town: Town) -> None:
    """As when rooms of two instances are merged: nobody is left with half a connection."""
    anna = await town.enter("anna", Camera())
    cleo = await town.enter("cleo")
    await cleo.flows("anna")
    before = cleo.sub_epoch
    for member in ("anna", "cleo"):
        await town.sfu.enter(town.room, member, publishes=member == "anna")
    await eventually(lambda: anna.pub_epoch == 2 and cleo.sub_epoch > before)
    await cleo.flows("anna", frames=10)


async def test_addresses_that_are_not_ours_are_an_error_for_those_who_ask(caplog: pytest.LogCaptureFixture) -> None:
    town = Town(addresses=("240.0.0.1",))
    anna = await town.enter("anna", Camera())
    assert (await anna.hears(error="unavailable"))["pc"] == "pub"
    assert "240.0.0.1" in caplog.text
    await town.aclose()
