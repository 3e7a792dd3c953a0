"""ElevenLabs' speech API.

Source of the protocol: ElevenLabs API reference, "Create speech", "Models" (characters per request), "Errors".
"""

import re
import time
from collections.abc import Callable, Mapping

import orjson

from ai_core.model import RequestRefused, Speech, TooLong
from ai_core.outbound.providers.errors import POLICY, REFUSED
from ai_core.outbound.providers.limits import retry_after
from ai_core.outbound.speech.base import TOO_MUCH, HttpSpeech
from ai_core.ports import ModelUnknown, ProviderBusy, ProviderFailed

FORMAT = "mp3_22050_32"
"""4 kB a second, so that the longest text fits what can be passed on."""
_VOICE = re.compile(r"[A-Za-z0-9]{20}")
_OF_THE_REQUEST = frozenset({400, 411, 413, 414, 415, 422, 431})
_OURS = frozenset({"quota_exceeded", "invalid_api_key", "missing_permissions", "detected_unusual_activity"})
"""Our account's trouble, whatever the status."""
_BUSY = frozenset({"too_many_concurrent_requests", "system_busy", "rate_limit_exceeded"})
_UNKNOWN = frozenset({"voice_not_found", "model_not_found", "voice_does_not_exist", "invalid_voice_id"})
_LONG = frozenset({"max_character_limit_exceeded", "text_too_long"})
_POLICY = frozenset({"content_against_policy", "content_policy_violation", "moderation_failed"})


class ElevenLabsSpeech(HttpSpeech):
    """ElevenLabs at ``base_url``, without ``/v1``. ``voice`` speaks when what is asked for is no id of a voice."""

    name = "elevenlabs"
    longest = 10_000
    _list = "/v1/voices"

    def __init__(
        self, base_url: str, api_key: str, model: str, voice: str, *, now: Callable[[], float] = time.time
    ) -> None:
        super().__init__(base_url, {"xi-api-key": api_key} if api_key else {}, now)
        self._model = model
        self._voice = voice

    async def speak(self, text: str, voice: str) -> Speech:
        """The port's ``speak``."""
        chosen = voice if _VOICE.fullmatch(voice) else self._voice
        path = f"/v1/text-to-speech/{chosen}?output_format={FORMAT}"
        return await self._spoken(path, {"text": text, "model_id": self._model}, text, self._model)

    def _refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        return refusal(self._model, status, headers, body, self._now())


def refusal(model: str, status: int, headers: Mapping[str, str], body: bytes, now: float) -> Exception:
    """What an answer other than 200 means; its words stay here. ``now``: unix seconds."""
    code = _code(body)
    if code in _OURS:
        return ProviderFailed(f"status {status}: the account")
    if status == 429 or code in _BUSY:
        return ProviderBusy("elevenlabs", retry_after(headers, now))
    if code in _UNKNOWN:
        return ModelUnknown(model)
    if code in _LONG or status == 413:
        return TooLong(TOO_MUCH)
    if code in _POLICY:
        return RequestRefused(POLICY)
    return RequestRefused(REFUSED) if status in _OF_THE_REQUEST else ProviderFailed(f"status {status}")


def _code(body: bytes) -> str:
    """The error's name; "" when there is none."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    detail = data.get("detail") if isinstance(data, dict) else None
    code = (detail.get("status") or detail.get("code")) if isinstance(detail, dict) else None
    return code if isinstance(code, str) else ""
