"""What AI Core promises while a dependency is gone: its rows of the degradation matrix, as far as they are built."""

from dataclasses import replace

from ai_core.model import DomainError
from ai_core.ports import CannotCarry, ModelUnknown, ProviderBusy, StoreUnavailable, VectorsGone
from ai_core.query import Link
from resilience import CallTimeout, Priority, Row, Verdict, default_classify

UNSAVED_HISTORY = "unsaved-history"
"""The agent's answer is delivered, but the conversation could not be written down."""

REDIS_CACHE = "redis-cache"
MEMORY_CACHE = "memory-cache"
REDIS_QUEUE = "redis-queue"

QUEUED_TEXT = "Service temporarily unavailable. Your change is saved and will be applied."

NEXT_LINK = "provider:model"
"""The next link of the chain. What callers see is its name, for example "anthropic:claude-sonnet-4-5"."""
RESPONSE_CACHE = "response-cache"
"""The kept answer to the identical query of the same tenant, with its age."""
ORIGINAL_TEXT = "original-text"
"""A translation's text as it came, because nobody could translate it."""
TEXT_ONLY = "text-only"
"""A speech's text without audio, because nobody could speak it."""
LOCAL_EMBEDDING = "local-embedding"
"""Vectors of the model in this process, in place of the provider's."""
FULL_TEXT = "full-text"
"""A search by words, because nobody can compare meanings."""
OPENAI_SPEECH = "openai-speech"
"""OpenAI speaks, because ElevenLabs does not."""

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
    fallbacks=(REDIS_CACHE, MEMORY_CACHE, REDIS_QUEUE, UNSAVED_HISTORY),
    promise="Agents, conversations and memories are read from the Redis copy, then from the process's own, marked "
    "stale and showing the reader's own queued writes as pending; writes are queued and answered 503 with queued: "
    "true, or 202 when asked for. Chat goes on, and what was said is queued; without Redis as well the answer is "
    "delivered without being remembered.",
    recovery="A probe finds the database within about a second of its return; a waiting migration runs, then the queue "
    "is drained in order per owner, each write once, and the copies are refreshed.",
    data_loss="low (queued)",
    user_text="Agents are temporarily unavailable",
)

REDIS = Row(
    id="ai_core.redis",
    label="A3",
    service="ai-core",
    dependency="redis",
    title="Redis",
    priority=Priority.P1,
    impact="medium",
    max_failures=3,
    open_seconds=30,
    call_timeout=0.6,
    fallbacks=(MEMORY_CACHE,),
    promise="Nobody notices while the database is there: reads and writes go to it, kept answers and copies are in "
    "this process's memory. There is no queue: a write needs the database.",
    recovery="A probe finds Redis within about a second of its return; copies are written again, never over newer "
    "ones.",
    data_loss="medium (per instance)",
    user_text="AI answers may be slower than usual",
)

PROVIDERS = Row(
    id="ai_core.providers",
    label="A2",
    service="ai-core",
    dependency="providers",
    title="each LLM provider and model",
    priority=Priority.P0,
    impact="high",
    max_failures=3,
    open_seconds=30,
    call_timeout=0.9,
    fallbacks=(NEXT_LINK, RESPONSE_CACHE, ORIGINAL_TEXT),
    promise="The next provider of the chain answers, and the answer says which one; when all are gone, the kept answer "
    "to the identical query with its age, for a translation the original text, else 503 and the time to retry. A "
    "stream fails over until its first token, then it ends with an error that says how much was sent.",
    recovery="A provider whose list of models answers again gets one short call; when that succeeds it is in use.",
    data_loss="none",
    user_text="All AI providers unavailable",
)
"""What holds for every link of the chain; each has a row of its own, made by ``link_row``."""


def link_row(link: Link) -> Row:
    """Row A2 for one provider and model: its own circuit, under the link's name."""
    return replace(PROVIDERS, id=f"{PROVIDERS.id}.{link.name}", dependency=link.name, title=link.name)


EMBEDDINGS = Row(
    id="ai_core.embeddings",
    label="A4",
    service="ai-core",
    dependency="embeddings",
    title="embedding provider",
    priority=Priority.P2,
    impact="low",
    max_failures=3,
    open_seconds=30,
    call_timeout=6.0,
    fallbacks=(LOCAL_EMBEDDING, FULL_TEXT),
    promise="Memories are stored and found by the vectors of the local model, which every memory has, and the answer "
    "says so; without that model they are stored as pending, and found by their words.",
    recovery="A probe embeds one word about once a second; when that succeeds, what is missing is embedded, the oldest "
    "first, and searches use the provider's vectors again as soon as all memories of their owner have one.",
    data_loss="none",
    user_text="Search in memories is less exact than usual",
)
"""Without a configured provider the local model is all there is, and the circuit is never asked."""

VECTORS = Row(
    id="ai_core.vectors",
    label="A6",
    service="ai-core",
    dependency="vectors",
    title="vector index (pgvector)",
    priority=Priority.P2,
    impact="low",
    max_failures=5,
    open_seconds=60,
    call_timeout=1.5,
    fallbacks=(FULL_TEXT,),
    promise="Memories are searched by their words, and the answer says so. Everything else is as usual: vectors are "
    "kept without the extension as well.",
    recovery="A probe looks about once a second, creates the extension when it is missing and that is allowed, and the "
    "indexes are built again.",
    data_loss="none",
    user_text="Memories are searched by their words only",
)

SPEECH = Row(
    id="ai_core.speech",
    label="A5",
    service="ai-core",
    dependency="speech",
    title="each speech provider (ElevenLabs, OpenAI)",
    priority=Priority.P2,
    impact="low",
    max_failures=3,
    open_seconds=30,
    call_timeout=0.9,
    fallbacks=(OPENAI_SPEECH, TEXT_ONLY),
    promise="The second provider speaks, and the answer says so; when nobody can, the text alone comes back, always "
    "with 200.",
    recovery="A provider whose list answers again gets two letters to speak; when they are spoken, it is in use.",
    data_loss="none",
    user_text="Speech is temporarily unavailable",
)
"""What holds for every provider of speech; each has a row of its own, made by ``speech_row``."""


def speech_row(name: str) -> Row:
    """Row A5 for one provider: its own circuit, under its own name."""
    return replace(SPEECH, id=f"{SPEECH.id}.{name}", dependency=name, title=name)


ROWS: tuple[Row, ...] = (POSTGRES, PROVIDERS, REDIS, SPEECH, EMBEDDINGS, VECTORS)


def classify(error: BaseException) -> Verdict:
    """What an error says about the dependency that raised it.

    A domain error is an answer. A provider that asks to be left alone, or lacks a model, is well, but that is no answer
    for the caller: the circuit is not concerned, and the next provider of a chain may serve.
    """
    if isinstance(error, DomainError | VectorsGone):
        return Verdict.SUCCESS
    if isinstance(error, ProviderBusy | ModelUnknown):
        return Verdict.NEUTRAL
    return default_classify(error)


def classify_database(error: BaseException) -> Verdict:
    """What an error says about the database: all but an outage is its answer, also to a statement that is wrong."""
    if not isinstance(error, Exception) or isinstance(error, CallTimeout):
        return Verdict.NEUTRAL  # its caller had less time than it is granted
    return Verdict.FAILURE if isinstance(error, StoreUnavailable | OSError) else Verdict.SUCCESS


def classify_provider(error: BaseException) -> Verdict:
    """What an error says about a link of the chain.

    A request that is refused was answered. Asking to be left alone (429), lacking a model, and a protocol that cannot
    say what the query asks concern no circuit. Everything else that an adapter raises is its provider's failure.
    """
    if not isinstance(error, Exception) or isinstance(error, ProviderBusy | ModelUnknown | CannotCarry):
        return Verdict.NEUTRAL
    return Verdict.SUCCESS if isinstance(error, DomainError) else Verdict.FAILURE


def classify_embedding(error: BaseException) -> Verdict:
    """What an error says about the embedding provider: as for a link of the chain."""
    return classify_provider(error)


def classify_vectors(error: BaseException) -> Verdict:
    """What an error says about pgvector: nothing, when it is the database's own."""
    return Verdict.FAILURE if isinstance(error, VectorsGone) else Verdict.NEUTRAL
