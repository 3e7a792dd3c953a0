"""The services' real metrics without their servers: every part is built and none is started."""

from __future__ import annotations

import secrets
from typing import Any

import ai_core.settings
import ai_core.wiring
import dashboard.settings
import dashboard.wiring
import webrtc.settings
import webrtc.wiring
from service_kit.telemetry import Metrics

NOBODY = "127.0.0.1:9"
_Values = dict[str, Any]
_EVERYWHERE: _Values = {
    "_env_file": None,
    "admin_token": secrets.token_hex(16),
    "jwt_secret": secrets.token_hex(16),
    "redis_url": f"redis://{NOBODY}",
    "database_url": f"postgresql://u:p@{NOBODY}/d",
}


async def metrics() -> dict[str, Metrics]:
    """The metrics of each service by its name, with every row that it can have. Nothing is left running."""
    kafka: _Values = {"kafka_bootstrap_servers": NOBODY}
    keys: _Values = {f"{name}_api_key": "simulated" for name in ("openai", "anthropic", "elevenlabs")}
    chain: _Values = {
        "ai_provider_chain": "openai:gpt-4,anthropic:claude-sonnet-5-5",
        "ai_embedding_model": "openai:small",
    }
    replica: _Values = {"database_replica_url": f"postgresql://u:p@{NOBODY}/r"}
    turn: _Values = {"turn_urls": "turn:127.0.0.1:9", "turn_secret": secrets.token_hex(16)}
    built: list[Any] = [
        await dashboard.wiring.build(dashboard.settings.Settings(**_EVERYWHERE, **kafka, **replica)),
        await ai_core.wiring.build(ai_core.settings.Settings(**_EVERYWHERE, **keys, **chain)),
        await webrtc.wiring.build(webrtc.settings.Settings(**_EVERYWHERE, **kafka, **turn)),
    ]
    for service in built:
        await service.runtime.close()
        await service.grpc_server.stop(0)
    return {service.runtime.name: service.runtime.metrics for service in built}
