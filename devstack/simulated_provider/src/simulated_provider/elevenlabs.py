"""ElevenLabs' protocol, as far as speech needs it.

Source of the shapes: ElevenLabs API reference, "Create speech", "List voices" and "Errors". Whatever format is asked
for, a tone comes as WAV (or as raw samples for `pcm_…`), and says so in its media type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from simulated_provider import audio
from simulated_provider.values import Answer, Call, Headers, Plain, Refused, Settings, Trouble

VOICES: Final = {"21m00Tcm4TlvDq8ikWAM": "Rachel", "JBFqnCBsd6RMkjVDRZzb": "George"}
MODELS: Final = ("eleven_multilingual_v2", "eleven_turbo_v2_5", "eleven_flash_v2_5")
MAX_TEXT: Final = 10_000
SPEECH: Final = "/v1/text-to-speech/"

_TROUBLES: Final[Mapping[Trouble, tuple[int, str]]] = {
    "rate_limit": (429, "too_many_concurrent_requests"),
    "quota": (401, "quota_exceeded"),
    "error": (500, "internal_server_error"),
    "overloaded": (503, "system_busy"),
    "unauthorized": (401, "invalid_api_key"),
    "bad_request": (400, "invalid_request"),
    "too_long": (400, "max_character_limit_exceeded"),
    "policy": (400, "content_against_policy"),
    "unknown_model": (400, "model_not_found"),
}


class ElevenLabs:
    """See `values.Dialect`."""

    models = MODELS

    def parse(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Call:  # noqa: ARG002
        path, _, query = path.partition("?")
        if path == "/v1/voices":
            _expect(method, "GET")
            return Call("elevenlabs", "models", "")
        if not path.startswith(SPEECH):
            raise Refused(error(404, "not_found"))
        _expect(method, "POST")
        voice = path.removeprefix(SPEECH).removesuffix("/stream")
        if voice not in VOICES:
            raise Refused(error(404, "voice_not_found"))
        return Call("elevenlabs", "speech", *_checked(body, query))

    def answer(self, call: Call, settings: Settings) -> Answer:  # noqa: ARG002 - speech has no tokens
        if call.kind == "models":
            voices = [{"voice_id": key, "name": name, "category": "simulated"} for key, name in VOICES.items()]
            return Plain(orjson.dumps({"voices": voices, "simulated": True}))
        text, raw = call.request
        seconds = audio.length_of(text)
        if raw:
            return Plain(audio.samples(seconds), content_type="audio/pcm")
        return Plain(audio.wav(seconds), content_type="audio/wav")

    def trouble(self, what: Trouble, call: Call | None = None) -> Plain:  # noqa: ARG002 - the same for each call
        return error(*_TROUBLES[what])

    def empty(self, call: Call) -> Answer:
        if call.kind == "models":
            return Plain(b'{"voices":[],"simulated":true}')
        return Plain(b"", content_type="audio/mpeg")

    def broken(self) -> bytes:
        return self.trouble("error").body

    def limits(self, remaining: int, reset: float, now: float) -> Headers:  # noqa: ARG002 - of concurrency only
        return (("current-concurrent-requests", "5"), ("maximum-concurrent-requests", str(5 + remaining)))


def error(status: int, name: str) -> Plain:
    """ElevenLabs' error object."""
    detail = {"status": name, "message": f"Simulated: {name.replace('_', ' ')}."}
    return Plain(orjson.dumps({"detail": detail, "simulated": True}), status)


def _expect(method: str, wanted: str) -> None:
    if method != wanted:
        raise Refused(error(405, "method_not_allowed"))


def _checked(body: bytes, query: str) -> tuple[str, tuple[str, bool]]:
    """The model; the text, and whether raw samples are wanted. Raises Refused."""
    try:
        data: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        data = None
    text = data.get("text") if isinstance(data, dict) else None
    if not isinstance(text, str) or not text:
        problem = {"loc": ["body", "text"], "msg": "Field required", "type": "missing"}
        raise Refused(Plain(orjson.dumps({"detail": [problem], "simulated": True}), 422))
    if len(text) > MAX_TEXT:
        raise Refused(error(400, "max_character_limit_exceeded"))
    model = data.get("model_id") or MODELS[0]
    if model not in MODELS:
        raise Refused(error(400, "model_not_found"))
    return model, (text, "output_format=pcm" in query)
