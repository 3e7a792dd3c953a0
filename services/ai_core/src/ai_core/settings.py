"""AI Core's own settings, beside those of every service."""

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ai_core.degradation import PROVIDERS
from ai_core.model import MODEL_PATTERN
from ai_core.query import Link
from ai_core.usecases.chain import Times
from resilience import Row
from service_kit.settings import (
    Bytes,
    CommaList,
    Port,
    PositiveSeconds,
    ServiceSettings,
    environment,
    postgres_url,
    redis_url,
)

LOCAL_EMBEDDING_MODEL = "local"
OPENAI_EMBEDDING_MODEL = "openai:text-embedding-3-small"
SIMULATED_KEY = "simulated"
"""The key with which a stack without a real one is started."""
DATABASE_SHARE = 0.5
"""Seconds of a chat request for what is not the provider's."""
CHAIN_SECONDS = 30.0
"""For all providers together: a model takes ten seconds and more for a long answer."""
SIMULATED_CHAIN_SECONDS = 1.5
"""The same while only the simulated provider is asked: it answers at once, and a chat fits into a usual request."""
ATTEMPT_SHARE = 0.6
"""Of the chain's time, for one provider: enough is left for the next one when the first hangs."""
FIRST_TOKEN_SECONDS = 10.0
"""A stream that has not begun by then does not: here a provider that hangs is known earlier than by a whole answer."""
DEFAULT_CHAIN = ("openai:gpt-4", "openai:gpt-3.5-turbo", "anthropic:claude-sonnet-5-5")
OPENAI, ANTHROPIC = "openai", "anthropic"
OPENAI_URL, ANTHROPIC_URL = "https://api.openai.com/v1", "https://api.anthropic.com"
FINE_TUNED = "ft"
"""Begins the names of OpenAI's fine-tuned models, which have colons in them."""

_PROVIDER_KEY = re.compile(r"AI_PROVIDER_([A-Z0-9_]+)_API_KEY")
_NAMED_PROVIDER = re.compile(r"([a-z][a-z0-9-]*)=(https?://[^\s?#]+)")

HttpUrl = Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")]


def _variable(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", name.upper())


def _link(text: str, providers: Collection[str]) -> Link:
    """One entry of the chain: ``openai:gpt-4``, ``openai/gpt-4``, or ``gpt-4`` for short. Raises ValueError."""
    for separator in ":/":
        provider, found, model = text.partition(separator)
        if found and provider in providers:
            return Link(provider, model)
    if ":" in text and text.partition(":")[0] != FINE_TUNED:
        raise PydanticCustomError("chain", "names a provider that is none of openai, anthropic and AI_PROVIDERS")
    return Link(OPENAI, text)


class Settings(ServiceSettings):
    """Names of variables are the fields' in capitals."""

    http_port: Port = 8081
    grpc_port: Port = 9081

    openai_api_key: SecretStr = SecretStr("")
    openai_base_url: HttpUrl = OPENAI_URL
    anthropic_api_key: SecretStr = SecretStr("")
    anthropic_base_url: HttpUrl = ANTHROPIC_URL
    ai_providers: CommaList = ()
    """Further providers that speak OpenAI's protocol: NAME=URL, the /v1 included; key in AI_PROVIDER_<NAME>_API_KEY."""
    provider_keys: dict[str, SecretStr] = Field(default_factory=dict, validation_alias="provider keys")
    ai_provider_chain: Annotated[CommaList, Field(validate_default=True)] = DEFAULT_CHAIN

    ai_anthropic_leave_out: CommaList = ()
    """Parameters that Claude does without where its model has no such thing; else such a query is not asked of it."""

    ai_connect_timeout: PositiveSeconds = 1.0
    elevenlabs_api_key: SecretStr = SecretStr("")
    elevenlabs_base_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] = "https://api.elevenlabs.io"
    """Without ``/v1``, as its own SDK takes it."""
    elevenlabs_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")] = "eleven_flash_v2_5"
    elevenlabs_voice: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{20}$")] = "JBFqnCBsd6RMkjVDRZzb"
    openai_speech_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./:-]{0,100}$")] = "tts-1"
    """Empty: what is at OPENAI_BASE_URL does not speak."""
    openai_speech_voice: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")] = "alloy"
    ai_provider_timeout: PositiveSeconds | None = None
    """For one provider's whole answer; None: 60 % of the chain's, so that the others get their share if it hangs."""
    ai_chain_timeout: PositiveSeconds | None = None
    """For all providers of the chain together; None: 30 s, and 1.5 s while all that is configured is simulated. The
    Dashboard has the same setting, for how long it waits."""
    ai_first_token_timeout: PositiveSeconds | None = None
    """Until a streamed answer has begun, at one provider; None: 10 s, or less where a whole answer gets less."""
    ai_stream_idle_timeout: PositiveSeconds = 10.0
    """Between two chunks of a streamed answer."""
    ai_response_cache_ttl: PositiveSeconds = 86_400.0
    ai_response_cache_size: Annotated[Bytes, Field(gt=0)] = 32_000_000
    """Memory for kept answers in this process."""

    ai_embedding_model: Annotated[str, Field(pattern=rf"^(local|openai:{MODEL_PATTERN})?$")] = ""
    """``local`` or ``openai:<model>``; empty: OpenAI's when it is configured, else the local one."""
    ai_embedding_dimensions: Annotated[int, Field(ge=1, le=8_192)] | None = None
    ai_embedding_base_url: Annotated[str, Field(pattern=r"^(https?://[^\s?#]+)?$")] = ""
    """For embeddings alone; empty: as for chat."""

    _needs_database = field_validator("database_url")(postgres_url)
    _needs_redis = field_validator("redis_url")(redis_url)

    @model_validator(mode="before")
    @classmethod
    def _collect_keys(cls, values: Any) -> Any:
        found = {match[1]: value for key, value in environment(cls).items() if (match := _PROVIDER_KEY.fullmatch(key))}
        return {**values, "provider keys": found}

    @field_validator("ai_providers")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [match[1] for entry in value if (match := _NAMED_PROVIDER.fullmatch(entry))]
        if len(names) < len(value) or len(set(names)) < len(names) or {OPENAI, ANTHROPIC} & set(names):
            raise PydanticCustomError(
                "providers", "expected NAME=URL,..., each name once, for example local=http://h/v1"
            )
        return value

    @field_validator("ai_provider_chain")
    @classmethod
    def _known(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        providers = {OPENAI, ANTHROPIC, *_urls(info.data.get("ai_providers", ()))}
        if not value or not all(_link(entry, providers).model for entry in value):
            raise PydanticCustomError(
                "chain", "expected at least one model, for example openai:gpt-4,openai:gpt-3.5-turbo"
            )
        return value

    @property
    def provider_urls(self) -> dict[str, str]:
        """The address of each provider, by its name."""
        known = {OPENAI: self.openai_base_url, ANTHROPIC: self.anthropic_base_url}
        return {**known, **_urls(self.ai_providers)}

    def provider_key(self, name: str) -> str:
        """A provider's key; "" when it has none."""
        known = {OPENAI: self.openai_api_key, ANTHROPIC: self.anthropic_api_key}
        return (known.get(name) or self.provider_keys.get(_variable(name)) or SecretStr("")).get_secret_value()

    @property
    def links(self) -> tuple[Link, ...]:
        """The whole chain as configured, each link once."""
        urls = self.provider_urls
        return tuple(dict.fromkeys(_link(entry, urls) for entry in self.ai_provider_chain))

    def usable(self, link: Link) -> bool:
        """Whether its provider can be asked at all: by a key, or at an address of its own, which may need none."""
        url = self.provider_urls[link.provider]
        return bool(self.provider_key(link.provider)) or url not in (OPENAI_URL, ANTHROPIC_URL)

    @property
    def simulated(self) -> bool:
        """Whether nobody real is asked: every key is the one of the simulated provider."""
        keys = [self.provider_key(link.provider) for link in self.links if self.usable(link)]
        spoken = self.elevenlabs_api_key.get_secret_value()
        return bool(keys) and {*keys, spoken or SIMULATED_KEY} == {SIMULATED_KEY}

    @property
    def times(self) -> Times:
        """The limits of time of the chain.

        With the defaults a chain of three that hangs is given up after 30 s: whole answers get 18, 6 and 6 s, streams
        10 s each until they begin. Its third failure opens a link's circuit, and nobody waits for it any more.
        """
        usual = SIMULATED_CHAIN_SECONDS if self.simulated else CHAIN_SECONDS
        chain = self.ai_chain_timeout or max(usual, self.ai_provider_timeout or 0.0)
        whole = min(chain, self.ai_provider_timeout or chain * ATTEMPT_SHARE)
        first_token = min(chain, self.ai_first_token_timeout or min(whole, FIRST_TOKEN_SECONDS))
        return Times(whole=whole, chain=chain, first_token=first_token, idle=self.ai_stream_idle_timeout)

    def circuit(self, row: Row) -> tuple[int, float]:
        """As for every row; a link of the chain takes what is set for it, else what is set for all providers."""
        if row.label == PROVIDERS.label:
            failures, seconds = super().circuit(PROVIDERS)
            row = replace(row, max_failures=failures, open_seconds=seconds)
        return super().circuit(row)

    @property
    def embedding_model(self) -> str:
        """The model that embeds. A simulated provider's vectors mean nothing: it has to be asked for by name."""
        key = self.openai_api_key.get_secret_value()
        configured = self.ai_embedding_base_url or key not in ("", SIMULATED_KEY)
        return self.ai_embedding_model or (OPENAI_EMBEDDING_MODEL if configured else LOCAL_EMBEDDING_MODEL)

    @property
    def speech_timeout(self) -> float | None:
        """Seconds for one provider of speech, half of the chain's; None: the row's, which suit the simulated one."""
        return self.ai_provider_timeout or (None if self.simulated else self.times.chain / 2)

    @property
    def chat_limit(self) -> float | None:
        """Seconds for a chat request whose provider may take longer than requests usually do."""
        needed = self.times.chain + DATABASE_SHARE
        return needed if needed > self.request_timeout else None


def _urls(entries: Iterable[str]) -> dict[str, str]:
    return {match[1]: match[2] for entry in entries if (match := _NAMED_PROVIDER.fullmatch(entry))}
