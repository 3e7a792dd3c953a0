"""The WebRTC service's own settings, beside those of every service."""

from ipaddress import ip_address
from typing import Annotated

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from service_kit.settings import CommaList, Port, PositiveSeconds, ServiceSettings, Url, postgres_url, redis_url
from webrtc.outbound.turn import address_of

STUN_SCHEMES = ("stun:", "stuns:")


class Settings(ServiceSettings):
    """Names of variables are the fields' in capitals."""

    http_port: Port = 8082
    grpc_port: Port = 9082

    stun_urls: CommaList = ()
    turn_urls: CommaList = ()
    turn_secret: SecretStr = SecretStr("")
    turn_credential_ttl: Annotated[PositiveSeconds, Field(ge=60)] = 43_200.0
    """How long a TURN credential is accepted; participants get a new one before it ends."""
    public_ws_url: Url = None
    """Where browsers reach the signalling; the service's own address when not set."""

    ws_message_rate: Annotated[float, Field(gt=0)] = 50.0
    """Messages a second that a participant may send on average; four seconds' worth at once."""
    ws_connections: Annotated[int, Field(gt=0)] = 5_000
    """WebSockets that this instance takes."""
    p2p_max_participants: Annotated[int, Field(ge=2, le=8)] = 2
    """Participants whose media goes from peer to peer; with more of them it goes through the media server."""

    sfu_addresses: CommaList = ()
    """Where the SFU receives media: LOCAL or LOCAL/ANNOUNCED addresses; those of all interfaces when not set."""
    sfu_ports: str = ""
    """FIRST-LAST: the UDP ports that the SFU uses, two for each participant; any when not set."""
    livekit_url: Url = None
    """A LiveKit server that forwards media in place of the SFU."""
    livekit_api_key: str = ""
    livekit_api_secret: SecretStr = SecretStr("")

    kafka_bootstrap_servers: CommaList = ()

    @field_validator("database_url")
    @classmethod
    def _database(cls, value: str | None) -> str | None:
        """Optional: without it no history of calls is kept."""
        return postgres_url(value) if value else None

    _needs_redis = field_validator("redis_url")(redis_url)

    @field_validator("stun_urls")
    @classmethod
    def _stun(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(url.startswith(STUN_SCHEMES) for url in value):
            raise PydanticCustomError("ice_url", "expected URLs such as stun:HOST:PORT")
        return value

    @field_validator("turn_urls")
    @classmethod
    def _turn(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            for url in value:
                address_of(url)
        except ValueError:
            raise PydanticCustomError("ice_url", "expected URLs such as turn:HOST:PORT?transport=udp") from None
        return value

    @field_validator("turn_secret")
    @classmethod
    def _turn_needs_secret(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        if info.data.get("turn_urls") and not value.get_secret_value():
            raise PydanticCustomError("turn_secret", "is required with TURN_URLS: it signs the credentials")
        return value

    @field_validator("sfu_addresses")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            for address in value:
                for part in address.split("/", 1):
                    ip_address(part)
        except ValueError:
            raise PydanticCustomError("sfu_addresses", "expected IP addresses, each LOCAL or LOCAL/ANNOUNCED") from None
        return value

    @field_validator("sfu_ports")
    @classmethod
    def _ports(cls, value: str) -> str:
        try:
            if value and not parse_ports(value):
                raise ValueError
        except ValueError:
            raise PydanticCustomError("sfu_ports", "expected FIRST-LAST, ports from 1 to 65535") from None
        return value

    @field_validator("livekit_url")
    @classmethod
    def _livekit(cls, value: str | None) -> str | None:
        if value and not value.startswith(("ws://", "wss://", "http://", "https://")):
            raise PydanticCustomError("livekit_url", "expected a ws(s) or http(s) URL")
        return value

    @field_validator("livekit_api_secret")
    @classmethod
    def _livekit_needs_keys(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        if info.data.get("livekit_url") and not (value.get_secret_value() and info.data.get("livekit_api_key")):
            raise PydanticCustomError("livekit_api", "LIVEKIT_API_KEY and this are required with LIVEKIT_URL")
        return value

    @property
    def sfu_port_range(self) -> range:
        """The ports that the SFU may use; empty for any."""
        return parse_ports(self.sfu_ports)

    @property
    def ws_url(self) -> str:
        """The signalling's URL as given to browsers."""
        return self.public_ws_url or f"ws://{self.http_host}:{self.http_port}/ws"


def parse_ports(text: str) -> range:
    """From "FIRST-LAST", both included; nothing from nothing. Raises ValueError."""
    if not text.strip():
        return range(0)
    first, last = (int(part) for part in text.split("-"))
    if not 0 < first <= last <= 65_535:
        raise ValueError(text)
    return range(first, last + 1)
