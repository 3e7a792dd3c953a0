"""The SFU as the service is set up: what settings accept, what metrics show, and that it costs nothing until used."""

import subprocess
import sys
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from pydantic import ValidationError

from webrtc.outbound.sfu.fanout import Counts
from webrtc.settings import Settings
from webrtc.wiring.media import SfuFigures

REQUIRED: dict[str, Any] = {"jwt_secret": "j" * 32, "admin_token": "a" * 16, "redis_url": "redis://localhost"}
LIVEKIT: dict[str, Any] = {"livekit_url": "wss://a.b", "livekit_api_key": "k", "livekit_api_secret": "s"}


def test_accepted() -> None:
    given = {"sfu_addresses": "::1, 0.0.0.0/203.0.113.7", "sfu_ports": "100-199"}
    settings = Settings(**REQUIRED | given | LIVEKIT)
    assert settings.sfu_addresses == ("::1", "0.0.0.0/203.0.113.7")
    assert settings.sfu_port_range == range(100, 200)
    assert len(Settings(**REQUIRED).sfu_port_range) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"sfu_addresses": "localhost"},
        {"sfu_addresses": "127.0.0.1/"},
        {"sfu_ports": "200-100"},
        {"sfu_ports": "0-10"},
        {"sfu_ports": "1-65536"},
        {"sfu_ports": "many"},
        {"livekit_url": "wss://a.b"},
        LIVEKIT | {"livekit_url": "ftp://a.b"},
        LIVEKIT | {"livekit_api_secret": ""},
    ],
)
def test_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Settings(**REQUIRED | wrong)


def test_metrics() -> None:
    registry = CollectorRegistry()
    counts = Counts(frames=5, octets=700, keyframe_requests=2, dropped=1, tracks=3, subscribers=4, received=6)
    registry.register(SfuFigures("webrtc", counts))
    shown = generate_latest(registry).decode()
    for line in (
        "tracks{} 3.0",
        "subscribers{} 4.0",
        "frames_total{} 5.0",
        "bytes_total{} 700.0",
        "frames_received_total{} 6.0",
        "frames_dropped_total{} 1.0",
        "keyframe_requests_total{} 2.0",
    ):
        assert "webrtc_sfu_" + line.replace("{}", '{service="webrtc"}') in shown


def test_a_service_without_large_rooms_does_not_load_it() -> None:
    code = "import sys, webrtc.wiring; sys.exit('aiortc' in sys.modules or 'av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
