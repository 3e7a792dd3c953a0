"""Packets into frames, and frames to many: losses, order, rates and bounds, without a network."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from webrtc.outbound.sfu.fanout import (
    ASK_AGAIN,
    ASK_AGAIN_URGENT,
    MAX_BYTES,
    MAX_FRAMES,
    Counts,
    Feed,
    Outlet,
)
from webrtc.outbound.sfu.frames import (
    HOLE_LIMIT,
    MAX_PARTS,
    MAX_WAITING,
    AudioFrames,
    Frame,
    VideoFrames,
    vp8_begins,
    vp8_key,
)

KEY, DELTA, MORE = b"\x10\x00k", b"\x10\x01d", b"\x00more"  # VP8: descriptor, first byte of the frame's header, rest


@dataclass
class RtpPacket:
    sequence_number: int
    timestamp: int
    payload: bytes
    marker: int = 1
    ssrc: int = 7


@dataclass
class Assembly:
    now: float = 100.0
    asked: int = 0
    frames: list[Frame] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.video = VideoFrames(self.frames.append, self._ask, lambda: self.now)

    def _ask(self) -> None:
        self.asked += 1

    def take(self, *packets: RtpPacket) -> list[int]:
        """RTP times of the frames that come of it."""
        before = len(self.frames)
        for packet in packets:
            self.video.take(packet)
        return [frame.timestamp for frame in self.frames[before:]]


def pictures(first: int, count: int, *, key: int | None = None) -> list[RtpPacket]:
    """One packet each; time is the number times 100, before wrapping around."""
    return [
        RtpPacket((first + at) & 0xFFFF, (first + at) * 100, KEY if first + at == key else DELTA) for at in range(count)
    ]


def test_a_frame_is_complete_with_its_marked_packet() -> None:
    assembly = Assembly()
    assert assembly.take(RtpPacket(1, 100, KEY, marker=0)) == []
    assert assembly.take(RtpPacket(2, 100, MORE)) == [100]
    assert assembly.frames == [Frame((KEY, MORE), 100, key=True, size=len(KEY + MORE))]
    assert assembly.take(*pictures(3, 1)) == [300]
    assert not assembly.frames[-1].key


def test_packets_out_of_order_and_twice_make_the_same_frames() -> None:
    assembly = Assembly()
    a, b, c, d = pictures(65_534, 4, key=65_534)
    assert assembly.take(a, c, d, c) == [a.timestamp]
    assert assembly.take(b, b, a) == [b.timestamp, c.timestamp, d.timestamp]


def test_an_unmarked_frame_ends_where_the_next_begins() -> None:
    assembly = Assembly()
    unmarked = [RtpPacket(1, 100, KEY, marker=0), RtpPacket(2, 200, DELTA, marker=0), RtpPacket(3, 300, DELTA)]
    assert assembly.take(*unmarked) == [100, 200, 300]


def test_padding_is_no_frame() -> None:
    assembly = Assembly()
    assert assembly.take(RtpPacket(1, 100, KEY), RtpPacket(2, 100, b"", marker=0), *pictures(3, 1)) == [100, 300]


def test_a_lost_packet_costs_the_frames_up_to_a_keyframe() -> None:
    assembly = Assembly()
    assert assembly.take(*pictures(1, 1, key=1), *pictures(3, 2)) == [100]
    assert assembly.asked == 0
    assembly.now += HOLE_LIMIT * 1.1
    assert assembly.take(*pictures(5, 1)) == []
    assert assembly.asked > 0
    assert assembly.take(*pictures(2, 1)) == []  # it comes too late
    assert assembly.take(*pictures(6, 3, key=7)) == [700, 800]


def test_a_retransmission_in_time_costs_nothing() -> None:
    assembly = Assembly()
    assembly.take(*pictures(1, 1, key=1), *pictures(3, 2))
    assembly.now += HOLE_LIMIT * 0.9
    assert assembly.take(*pictures(2, 1)) == [200, 300, 400]
    assembly.now += HOLE_LIMIT
    assert assembly.take(*pictures(6, 1)) == []
    assert assembly.take(*pictures(5, 1)) == [500, 600]  # another hole, with a time of its own
    assert assembly.asked == 0


def test_what_waits_behind_a_hole_is_bounded() -> None:
    assembly = Assembly()
    assembly.take(*pictures(1, 1, key=1), *pictures(3, MAX_WAITING + 10))
    assert len(assembly.video._waiting) < MAX_WAITING
    assert assembly.asked > 0


def test_a_frame_without_an_end_is_bounded() -> None:
    assembly = Assembly()
    for number in range(3 * MAX_PARTS):
        assembly.take(RtpPacket(number, 100, MORE, marker=0))
        assert len(assembly.video._parts) < MAX_PARTS


def test_a_stream_that_begins_anew_is_followed() -> None:
    assembly = Assembly()
    assembly.take(*pictures(1_000, 3, key=1_000))
    assert assembly.take(*pictures(20, 2, key=20)) == [2_000, 2_100]  # far behind
    assert assembly.take(*pictures(9_000, 2, key=9_000)) == [900_000, 900_100]  # far ahead
    other = [RtpPacket(9_002, 5, DELTA, ssrc=8), RtpPacket(9_003, 6, KEY, ssrc=8)]
    assert assembly.take(*other) == [6]


def test_half_a_frame_is_never_passed_on() -> None:
    assembly = Assembly()
    assert assembly.take(RtpPacket(5, 100, MORE), *pictures(6, 1)) == []
    assert assembly.take(*pictures(7, 1, key=7)) == [700]


@pytest.mark.parametrize(
    ("payload", "begins", "key"),
    [
        (KEY, True, True),
        (DELTA, True, False),
        (b"\x90\x80\x05\x00", True, True),  # X, picture id of 7 bits
        (b"\x90\x80\x85\x01\x01", True, False),  # of 15 bits
        (b"\x90\xe0\x85\x01\x02\x40\x00", True, True),  # and temporal layers
        (b"\x90\x10\x03\x00", True, True),  # key index alone
        (b"\x80\x80\x85\x01\x00", False, None),
        (b"\x11\x00", False, None),  # a later partition
        (b"\x10", False, None),
        (b"\x90\xf0", True, False),  # truncated
        (b"\x90\x80", True, False),
    ],
)
def test_descriptors_of_vp8(payload: bytes, begins: bool, key: bool | None) -> None:
    assert vp8_begins(payload) is begins
    if begins:
        assert vp8_key(payload) is key


def test_each_packet_of_sound_is_passed_on_at_once() -> None:
    heard: list[Frame] = []
    audio = AudioFrames(heard.append)
    audio.take(RtpPacket(9, 960, b"two"), level=30)
    audio.take(RtpPacket(8, 0, b"one"))
    audio.take(RtpPacket(10, 1_920, b""))
    assert heard == [
        Frame((b"two",), 960, key=True, size=3, level=30),
        Frame((b"one",), 0, key=True, size=3),
    ]


@dataclass
class Studio:
    """A feed and its outlets, with a clock."""

    kind: Any = "video"
    now: float = 100.0
    asked: int = 0

    def __post_init__(self) -> None:
        self.counts = Counts()
        self.feed = self.new_feed()

    def new_feed(self) -> Feed:
        return Feed("anna", self.kind, self._ask, self._clock, self.counts)

    def _ask(self) -> None:
        self.asked += 1

    def _clock(self) -> float:
        return self.now

    async def watching(self) -> tuple[Outlet, "asyncio.Task[tuple[Frame, int]]"]:
        """An outlet whose sender waits for its first frame."""
        outlet = Outlet(self.kind, self._clock, self.counts)
        outlet.connect(self.feed)
        first = asyncio.create_task(outlet.next())
        await asyncio.sleep(0)
        return outlet, first


def frame(timestamp: int, *, key: bool = False, size: int = 10) -> Frame:
    return Frame((b"x",), timestamp, key=key, size=size)


async def test_an_outlet_that_nobody_reads_from_yet_gets_nothing() -> None:
    studio = Studio()
    Outlet("video", studio._clock, studio.counts).connect(studio.feed)
    assert not studio.feed.outlets
    assert studio.asked == 0


async def test_the_first_frame_is_a_keyframe_asked_for_at_once() -> None:
    studio = Studio()
    _, first = await studio.watching()
    assert studio.asked == 1
    studio.feed.deliver(frame(100))
    studio.feed.deliver(frame(200, key=True))
    assert (await first)[0].timestamp == 200


async def test_keyframes_are_asked_for_at_a_bounded_rate() -> None:
    studio = Studio()
    outlet, _ = await studio.watching()
    studio.feed.deliver(frame(100, key=True))
    for _ in range(100):  # for 5 s, twenty times a second
        studio.now += 0.05
        outlet.lost()
        studio.feed.deliver(frame(200, key=True))
    assert 4 <= studio.asked - 1 <= 5 / ASK_AGAIN
    studio.now += ASK_AGAIN
    outlet.lost()
    before = studio.asked
    studio.now += ASK_AGAIN_URGENT * 0.9
    await studio.watching()
    assert studio.asked == before
    studio.now += ASK_AGAIN_URGENT
    studio.feed.deliver(frame(300))  # what was wanted is not forgotten
    assert studio.asked == before + 1


async def test_a_full_outlet_drops_up_to_a_keyframe_and_holds_nobody_up() -> None:
    studio = Studio()
    slow, first = await studio.watching()
    fast, _ = await studio.watching()
    studio.feed.deliver(frame(0, key=True))
    await first
    for at in range(1, 1_000):
        studio.feed.deliver(frame(at))
        while fast._frames:
            await fast.next()
    assert len(slow._frames) == 0  # cleared, and now waiting for a keyframe
    assert studio.counts.dropped == MAX_FRAMES + 1
    assert fast._last[0] == 999
    studio.feed.deliver(frame(1_000, key=True))
    assert (await slow.next())[0].key


async def test_the_bytes_that_wait_are_bounded() -> None:
    studio = Studio()
    slow, _ = await studio.watching()
    for at in range(10):
        studio.feed.deliver(frame(at, key=True, size=MAX_BYTES // 4))
        assert slow._bytes <= MAX_BYTES


async def test_time_goes_on_when_an_m_line_changes_its_track() -> None:
    studio = Studio()
    outlet, first = await studio.watching()
    studio.feed.deliver(frame(5_000, key=True))
    assert (await first)[1] == 0
    studio.feed.deliver(frame(8_000))
    assert (await outlet.next())[1] == 3_000
    other = studio.new_feed()
    outlet.connect(other)
    assert not studio.feed.outlets
    studio.now += 1.0
    other.deliver(frame(4_000_000_000))
    other.deliver(frame(4_000_000_000, key=True))
    assert (await outlet.next())[1] == 3_000 + 90_000
    outlet.close()
    assert not other.outlets


async def test_sound_needs_no_keyframe() -> None:
    studio = Studio("audio")
    _, first = await studio.watching()
    studio.feed.deliver(frame(960, key=True))
    await first
    assert studio.asked == 0
