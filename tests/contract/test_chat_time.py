"""Chat through the Dashboard may last as long as AI Core's provider chain, whatever is set (rows D3 and A2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ai_core.settings import SIMULATED_KEY
from ai_core.settings import Settings as AiCore
from dashboard.settings import Settings as Dashboard
from devstack.components import providers
from service_kit.http.edge import MAX_MARGIN

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"
REDIS = "redis://127.0.0.1:1/0"
KNOWN = {"database_url": "postgresql://x@h/d", "redis_url": REDIS, "jwt_secret": "x" * 40, "admin_token": "y" * 40}
ON_THE_WAY = 0.3
"""Seconds that both services keep for themselves, besides the edge's share."""


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"ai_chain_timeout": 1.5},
        {"ai_chain_timeout": 120},
        {"ai_provider_timeout": 5},
        {"ai_provider_timeout": 45},
        {"ai_provider_timeout": 45, "ai_chain_timeout": 90},
        {"request_timeout": 60},
    ],
)
@pytest.mark.parametrize("key", ["", "sk-real", SIMULATED_KEY])
def test_the_dashboard_waits_longer_than_ai_core_does(given: dict[str, Any], key: str) -> None:
    chain = AiCore.model_validate({**KNOWN, **given, "openai_api_key": key, "anthropic_api_key": key})
    dashboard = Dashboard.model_validate({**KNOWN, **given})
    limit = dashboard.chat_limit or dashboard.request_timeout
    assert limit - MAX_MARGIN - ON_THE_WAY >= chain.times.chain


def test_what_starts_without_keys_has_the_short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ELEVENLABS_API_KEY", "AI_PROVIDER_CHAIN"):
        monkeypatch.delenv(name, raising=False)
    stack = {name.lower(): value for name, value in providers.environment(1).items()}
    assert AiCore.model_validate({**KNOWN, **stack}).simulated
    assert COMPOSE.read_text().count(f"_API_KEY:-{SIMULATED_KEY}}}") == 3
