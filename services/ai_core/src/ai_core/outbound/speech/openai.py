"""OpenAI's speech API, or anything compatible.

Source of the protocol: OpenAI API reference, "Create speech" (the voices, and the limit of 4096 characters).
"""

import time
from collections.abc import Callable, Mapping

from ai_core.model import Speech
from ai_core.outbound.providers.errors import refusal
from ai_core.outbound.speech.base import HttpSpeech

VOICES = frozenset(
    "alloy ash ballad coral echo fable marin cedar nova onyx sage shimmer verse".split()  # noqa: SIM905 - a list to read
)


class OpenAISpeech(HttpSpeech):
    """OpenAI at ``base_url``, its ``/v1`` included. ``voice`` speaks when another one, or none, is asked for."""

    name = "openai"
    longest = 4_096
    _list = "/models"

    def __init__(
        self, base_url: str, api_key: str, model: str, voice: str, *, now: Callable[[], float] = time.time
    ) -> None:
        super().__init__(base_url, {"Authorization": f"Bearer {api_key}"} if api_key else {}, now)
        self._model = model
        self._voice = voice

    async def speak(self, text: str, voice: str) -> Speech:
        """The port's ``speak``."""
        chosen = voice if voice in VOICES else self._voice
        request = {"model": self._model, "voice": chosen, "input": text, "response_format": "mp3"}
        return await self._spoken("/audio/speech", request, text, self._model)

    def _refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        return refusal(self.name, self._model, status, headers, body, self._now())
