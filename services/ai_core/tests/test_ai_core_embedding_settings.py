"""Which model embeds, and what that means for what is stored."""

from typing import Any

import pytest
from pydantic import ValidationError

from ai_core.outbound.vectors import Space
from ai_core.settings import Settings
from ai_core.wiring.memories import spaces_of

REQUIRED = {
    "database_url": "postgresql://user@localhost/ai_core",
    "redis_url": "redis://localhost",
    "jwt_secret": "j" * 40,
    "admin_token": "a" * 40,
}
LOCAL = Space("local:all-MiniLM-L6-v2-int8", 384)


def settings(**given: Any) -> Settings:
    return Settings(**{**REQUIRED, **given})


@pytest.mark.parametrize(
    ("given", "model"),
    [
        ({}, "local"),
        ({"openai_api_key": "simulated"}, "local"),
        ({"openai_api_key": "sk-1"}, "openai:text-embedding-3-small"),
        ({"ai_embedding_base_url": "http://localhost:1234/v1"}, "openai:text-embedding-3-small"),
        ({"openai_api_key": "sk-1", "ai_embedding_model": "local"}, "local"),
        ({"openai_api_key": "simulated", "ai_embedding_model": "openai:bge-m3"}, "openai:bge-m3"),
    ],
)
def test_the_model(given: dict[str, str], model: str) -> None:
    assert settings(**given).embedding_model == model


@pytest.mark.parametrize("wrong", ["cohere:x", "openai:", "openai:it's", "text-embedding-3-small", "local:x"])
def test_a_model_that_nobody_offers_is_said(wrong: str) -> None:
    with pytest.raises(ValidationError):
        settings(ai_embedding_model=wrong)


def test_every_memory_has_the_local_models_vector_and_the_configured_ones() -> None:
    assert spaces_of(settings()) == [LOCAL]
    small = settings(ai_embedding_model="openai:text-embedding-3-small")
    assert spaces_of(small) == [LOCAL, Space("openai:text-embedding-3-small", 1536)]
    shorter = settings(ai_embedding_model="openai:text-embedding-3-large", ai_embedding_dimensions=256)
    assert spaces_of(shorter) == [LOCAL, Space("openai:text-embedding-3-large@256", 256)]
    unknown = settings(ai_embedding_model="openai:bge-m3")
    assert spaces_of(unknown) == [LOCAL, Space("openai:bge-m3", None)]
    assert len({space.index for space in (*spaces_of(small), *spaces_of(shorter), *spaces_of(unknown))}) == 4


def test_a_models_name_cannot_leave_its_quotes() -> None:
    with pytest.raises(ValueError, match="name"):
        _ = Space("x'; DROP TABLE memories; --", 3).literal
    assert Space("huge", 3_000).kind == "halfvec(3000)"
