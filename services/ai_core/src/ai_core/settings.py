"""AI Core's own settings, beside those of every service."""

from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_core import PydanticCustomError

from service_kit.settings import CommaList, Port, PositiveSeconds, ServiceSettings, postgres_url

PROVIDERS = ("openai",)
DATABASE_SHARE = 0.5
"""Seconds of a chat request for what is not the provider's."""


def _link(text: str) -> tuple[str, str]:
    """Provider and model of one entry of the chain: ``openai:gpt-4``, ``openai/gpt-4``, or ``gpt-4`` for short."""
    for separator in ":/":
        provider, found, model = text.partition(separator)
        if found and provider in PROVIDERS:
            return provider, model
    return PROVIDERS[0], text


class Settings(ServiceSettings):
    """Names of variables are the fields' in capitals."""

    http_port: Port = 8081
    grpc_port: Port = 9081

    openai_api_key: SecretStr = SecretStr("")
    openai_base_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] = "https://api.openai.com/v1"
    ai_provider_chain: CommaList = ("openai:gpt-4",)
    ai_provider_timeout: PositiveSeconds | None = None
    """For one call; the row's own when not set. To be raised for models that answer slowly."""

    _needs_database = field_validator("database_url")(postgres_url)

    @field_validator("ai_provider_chain")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(_link(entry)[1] for entry in value):
            raise PydanticCustomError(
                "chain", "expected at least one model, for example openai:gpt-4,openai:gpt-3.5-turbo"
            )
        return value

    @property
    def chat_limit(self) -> float | None:
        """Seconds for a chat request whose provider may take longer than requests usually do."""
        needed = (self.ai_provider_timeout or 0.0) + DATABASE_SHARE
        return needed if needed > self.request_timeout else None

    @property
    def default_model(self) -> str:
        """The model of the chain's first entry: it serves agents that name none."""
        return _link(self.ai_provider_chain[0])[1]
