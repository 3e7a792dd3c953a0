"""Providers of speech (row A5, ai_core.speech): an adapter each for ElevenLabs' and OpenAI's HTTP API."""

from ai_core.outbound.speech.elevenlabs import ElevenLabsSpeech
from ai_core.outbound.speech.openai import OpenAISpeech

__all__ = ["ElevenLabsSpeech", "OpenAISpeech"]
