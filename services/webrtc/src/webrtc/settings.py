"""The WebRTC service's own settings, beside those of every service."""

from typing import Annotated

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from service_kit.settings import CommaList, Port, PositiveSeconds, ServiceSettings, Url, redis_url

ICE_SCHEMES = ("stun:", "stuns:", "turn:", "turns:")


class Settings(ServiceSettings):
    """Names of variables are the fields' in capitals."""

    http_port: Port = 8082
    grpc_port: Port = 9082

    stun_urls: CommaList = ()
    turn_urls: CommaList = ()
    turn_secret: SecretStr = SecretStr("")
    turn_credential_ttl: Annotated[PositiveSeconds, Field(ge=60)] = 43_200.0
    """How long a TURN credential is accepted; a call that lasts longer loses its relay."""
    public_ws_url: Url = None
    """Where browsers reach the signalling; the service's own address when not set."""

    _needs_redis = field_validator("redis_url")(redis_url)

    @field_validator("stun_urls", "turn_urls")
    @classmethod
    def _ice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(url.startswith(ICE_SCHEMES) for url in value):
            raise PydanticCustomError("ice_url", "expected URLs such as stun:HOST:PORT or turn:HOST:PORT?transport=udp")
        return value

    @field_validator("turn_secret")
    @classmethod
    def _turn_needs_secret(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        if info.data.get("turn_urls") and not value.get_secret_value():
            raise PydanticCustomError("turn_secret", "is required with TURN_URLS: it signs the credentials")
        return value

    @property
    def ws_url(self) -> str:
        """The signalling's URL as given to browsers."""
        return self.public_ws_url or f"ws://{self.http_host}:{self.http_port}/ws"
