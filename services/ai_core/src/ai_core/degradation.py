"""What AI Core promises while a dependency is gone: its rows of the degradation matrix, as far as they are built."""

from ai_core.model import DomainError
from ai_core.ports import ModelUnknown, ProviderBusy
from resilience import Priority, Row, Verdict, default_classify

UNSAVED_HISTORY = "unsaved-history"
"""The agent's answer is delivered, but the conversation could not be written down."""

ORIGINAL_TEXT = "original-text"
"""A translation's text as it came, because nobody could translate it."""
TEXT_ONLY = "text-only"
"""A speech's text without audio, because nobody could speak it."""
SPEECH_ROW = "ai_core.speech"
"""Row A5. It has no dependency and no circuit yet: no speech provider is built, its last fallback always serves."""

POSTGRES = Row(
    id="ai_core.postgres",
    label="A1",
    service="ai-core",
    dependency="postgres",
    title="PostgreSQL",
    priority=Priority.P0,
    impact="high",
    max_failures=5,
    open_seconds=60,
    call_timeout=1.0,
    fallbacks=(UNSAVED_HISTORY,),
    promise="Agents and memories cannot be read or changed: an error and the time to retry. An answer that the "
    "provider has already given is delivered, without being remembered.",
    recovery="A probe finds the database within about a second of its return; a waiting migration runs then.",
    data_loss="low (the last exchange of a conversation)",
    user_text="Agents are temporarily unavailable",
)

PROVIDERS = Row(
    id="ai_core.providers",
    label="A2",
    service="ai-core",
    dependency="providers",
    title="LLM provider",
    priority=Priority.P0,
    impact="high",
    max_failures=3,
    open_seconds=30,
    call_timeout=1.5,
    fallbacks=(ORIGINAL_TEXT,),
    promise="Chat answers with an error and the time to retry, a translation is the original text, marked as not "
    "translated; agents and memories can be read and changed.",
    recovery="A probe of the provider's model list finds it within about a second of its return.",
    data_loss="none",
    user_text="All AI providers unavailable",
)

ROWS: tuple[Row, ...] = (POSTGRES, PROVIDERS)


def classify(error: BaseException) -> Verdict:
    """What an error says about the dependency that raised it.

    A domain error is an answer. A provider that asks to be left alone, or lacks a model, is well, but that is no answer
    for the caller: the circuit is not concerned, and the next provider of a chain may serve.
    """
    if isinstance(error, DomainError):
        return Verdict.SUCCESS
    if isinstance(error, ProviderBusy | ModelUnknown):
        return Verdict.NEUTRAL
    return default_classify(error)
