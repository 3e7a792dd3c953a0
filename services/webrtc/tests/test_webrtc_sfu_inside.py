"""The parts of aiortc and aioice that are used although they are not public: fails when a version changes them."""

import asyncio
import inspect
from importlib import metadata

import aioice
import pytest
from aiortc import RTCPeerConnection, RTCRtpReceiver
from aiortc.jitterbuffer import JitterBuffer
from aiortc.rtcrtpsender import RTCEncodedFrame
from aiortc.rtp import RtpPacket

from webrtc.outbound.sfu import inside
from webrtc.outbound.sfu.descriptions import CODECS
from webrtc.outbound.sfu.fanout import Counts, Outlet
from webrtc.outbound.sfu.inside import Address
from webrtc.outbound.sfu.subscription import _Silence
from webrtc.outbound.sfu.thread import MAX_UNSENT, MediaLoop


def test_versions_are_those_that_this_was_written_for() -> None:
    assert metadata.version("aiortc") == inside.AIORTC
    assert metadata.version("aioice") == inside.AIOICE


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


async def test_a_receiver_has_what_the_tap_replaces() -> None:
    pc = RTCPeerConnection()
    receiver: RTCRtpReceiver = pc.addTransceiver("video", direction="recvonly").receiver
    assert isinstance(receiver.__dict__["_RTCRtpReceiver__jitter_buffer"], JitterBuffer)
    assert hasattr(receiver.__dict__["_RTCRtpReceiver__decoder_queue"], "put")
    assert parameters(JitterBuffer.add) == ["self", "packet"]
    assert parameters(RTCRtpReceiver._send_rtcp_pli) == ["self", "media_ssrc"]
    source = inspect.getsource(RTCRtpReceiver._handle_rtp_packet)
    assert "pli_flag, encoded_frame = self.__jitter_buffer.add(packet)" in source
    await pc.close()


async def test_a_sender_has_what_the_outlet_replaces() -> None:
    pc = RTCPeerConnection()
    sender = pc.addTransceiver(_Silence("video"), direction="sendonly").sender
    assert parameters(type(sender)._next_encoded_frame) == ["self", "codec"]
    assert parameters(type(sender)._send_keyframe) == ["self"]
    assert parameters(RTCEncodedFrame.__init__) == ["self", "payloads", "timestamp", "audio_level"]
    assert "self._next_encoded_frame(codec)" in inspect.getsource(type(sender)._run_rtp)
    assert "self._send_keyframe()" in inspect.getsource(type(sender)._handle_rtcp_packet)
    inside.drive(sender, Outlet("video", lambda: 0.0, Counts()))
    inside.name_stream(sender, "p_anna")
    assert "a=msid:p_anna " in (await pc.createOffer()).sdp
    await pc.close()


def test_a_packet_has_what_the_tap_reads() -> None:
    packet = RtpPacket(sequence_number=1, timestamp=2, ssrc=3, payload=b"x")
    packet.extensions.audio_level = (False, 40)
    got: list[object] = []
    buffer = inside.Tap(lambda packet, level: got.append((packet.payload, level)))
    assert buffer.add(packet) == (False, None)
    assert got == [(b"x", 40)]
    assert buffer.ssrc == 3


async def test_addresses_are_bound_and_announced() -> None:
    pc = RTCPeerConnection()
    inside.bind(pc.addTransceiver("audio"), [Address.parse("127.0.0.1/203.0.113.9")])
    await pc.setLocalDescription()
    candidates = [line for line in pc.localDescription.sdp.splitlines() if line.startswith("a=candidate")]
    assert len(candidates) == 1
    assert " 203.0.113.9 " in candidates[0]
    assert aioice.Connection(ice_controlling=True)._closing is False
    assert parameters(aioice.Connection.connect) == ["self"]
    assert parameters(aioice.Connection.get_component_candidates) == ["self", "component", "addresses", "timeout"]
    await pc.close()


async def test_no_address_at_all_is_an_error() -> None:
    pc = RTCPeerConnection()
    inside.bind(pc.addTransceiver("audio"), [Address.parse("240.0.0.1")])
    with pytest.raises(OSError, match=r"240\.0\.0\.1"):
        await pc.setLocalDescription()
    await pc.close()


def test_the_codecs_exist() -> None:
    for kind, name in CODECS.items():
        assert name in [codec.name.lower() for codec in RTCRtpReceiver.getCapabilities(kind).codecs]  # type: ignore[union-attr]


async def test_what_arrives_and_is_not_handled_is_bounded() -> None:
    pc = RTCPeerConnection()
    transceiver = pc.addTransceiver("audio")
    inside.bind(transceiver, [])
    connection = transceiver.receiver.transport.transport._connection
    for _ in range(inside.MAX_DATAGRAMS + 100):
        connection.data_received(b"x", 1)
    assert connection._queue.qsize() == inside.MAX_DATAGRAMS
    await connection.close()
    assert connection._queue.qsize() == inside.MAX_DATAGRAMS + 1  # the end is not lost
    await pc.close()


def test_what_the_network_does_not_take_is_bounded() -> None:
    loop = MediaLoop(range(0))

    async def fill() -> None:
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))
        loop.add_writer = loop.remove_writer  # type: ignore[method-assign, assignment] # it never gets writable
        transport._sock = Full()
        for _ in range(1_000):
            transport.sendto(bytes(1_000), ("127.0.0.1", 9))
        assert MAX_UNSENT <= transport.get_write_buffer_size() <= MAX_UNSENT + 1_000

    class Full:
        def sendto(self, data: bytes, addr: object) -> None:
            raise BlockingIOError

    loop.run_until_complete(fill())
    loop.close()
