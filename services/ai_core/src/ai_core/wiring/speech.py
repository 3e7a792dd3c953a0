"""Row A5: the providers of speech that are configured."""

from ai_core.degradation import OPENAI_SPEECH, classify, speech_row
from ai_core.outbound.speech import ElevenLabsSpeech, OpenAISpeech
from ai_core.outbound.speech.base import MAX_CONNECTIONS
from ai_core.ports import SpeechProvider
from ai_core.settings import Settings
from ai_core.usecases.speech import GuardedSpeech, Speeches
from service_kit.runtime import ServiceRuntime


class SpeechPart:
    """ElevenLabs with its key, then OpenAI with its key. Make it on the loop that will serve."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings) -> None:
        self._runtime = runtime
        self._limit = settings.speech_timeout
        providers = []
        if key := settings.elevenlabs_api_key.get_secret_value():
            url, model, voice = settings.elevenlabs_base_url, settings.elevenlabs_model, settings.elevenlabs_voice
            providers.append(self._guarded(ElevenLabsSpeech(url, key, model, voice), "elevenlabs"))
        if (key := settings.openai_api_key.get_secret_value()) and (model := settings.openai_speech_model):
            speech = OpenAISpeech(settings.openai_base_url, key, model, settings.openai_speech_voice)
            providers.append(self._guarded(speech, OPENAI_SPEECH))
        self.speeches = Speeches(providers, runtime.clock)

    def _guarded(self, provider: SpeechProvider, name: str) -> GuardedSpeech:
        row = speech_row(name)
        limit = self._limit or row.call_timeout
        policy = self._runtime.policy(
            row,
            classify=classify,
            probe=provider.ping,
            trial=lambda: guarded.trial(),
            bulkhead_limit=MAX_CONNECTIONS,
            timeout=limit,
        )
        self._runtime.on_close(provider.close, name)
        guarded = GuardedSpeech(provider, policy, name, self._runtime.clock)
        return guarded
