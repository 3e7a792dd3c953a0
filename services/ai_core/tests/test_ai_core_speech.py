"""Speech (row A5): the adapters against the simulated providers, and the use case on providers that fail on command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from ai_core.degradation import OPENAI_SPEECH, SPEECH, TEXT_ONLY, classify, speech_row
from ai_core.model import Invalid, RequestRefused, Speech, TooLong
from ai_core.outbound.speech import ElevenLabsSpeech, OpenAISpeech
from ai_core.outbound.speech.base import MAX_AUDIO, media_type
from ai_core.outbound.speech.elevenlabs import refusal
from ai_core.ports import ModelUnknown, ProviderBusy, ProviderFailed
from ai_core.usecases.speech import GuardedSpeech, Speeches
from resilience import CircuitBreaker, CircuitState, FakeClock, RowPolicy, Served, deadline_scope
from simulated_provider.app import App
from simulated_provider.faults import Fault
from simulated_provider.server import Server

VOICE = "21m00Tcm4TlvDq8ikWAM"


class Simulated:
    """The simulated providers in this process, and both adapters on them."""

    def __init__(self, port: int, app: App) -> None:
        self.app = app
        url = f"http://127.0.0.1:{port}"
        self.elevenlabs = ElevenLabsSpeech(f"{url}/elevenlabs/", "key", "eleven_flash_v2_5", "JBFqnCBsd6RMkjVDRZzb")
        self.openai = OpenAISpeech(f"{url}/v1", "key", "tts-1", "alloy")
        self.both = (("elevenlabs", self.elevenlabs), ("openai", self.openai))


@pytest_asyncio.fixture
async def simulated() -> AsyncIterator[Simulated]:
    app = App()
    server = Server(app)
    providers = Simulated(await server.start("127.0.0.1", 0), app)
    yield providers
    for _, adapter in providers.both:
        await adapter.close()
    await server.stop()


async def test_both_speak_and_say_who_it_was(simulated: Simulated) -> None:
    for name, adapter in simulated.both:
        for voice in ("", "alloy", VOICE):
            spoken = await adapter.speak("Hello there", voice)
            assert (spoken.audio or b"")[:4] == b"RIFF"
            assert (spoken.text, spoken.content_type) == ("Hello there", "audio/wav")
            assert (spoken.provider, spoken.simulated) == (name, True)
        await adapter.ping()
    assert simulated.app.calls.shown()["openai:tts-1"]["speech"] == 3


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("refuse", ProviderFailed),
        ("error", ProviderFailed),
        ("overloaded", (ProviderFailed, ProviderBusy)),
        ("unauthorized", ProviderFailed),
        ("quota", ProviderFailed),
        ("empty", ProviderFailed),
        ("html", ProviderFailed),
        ("cut", ProviderFailed),
        ("rate_limit", ProviderBusy),
        ("rate_limit_no_hint", ProviderBusy),
        ("unknown_model", ModelUnknown),
        ("too_long", TooLong),
        ("policy", RequestRefused),
        ("bad_request", RequestRefused),
    ],
)
async def test_errors_are_sorted(simulated: Simulated, fault: str, error: type[Exception]) -> None:
    for name, adapter in simulated.both:
        simulated.app.faults.order(f"{name}:speech", Fault(fault, retry_after=7))
        with pytest.raises(error) as raised:
            await adapter.speak("Hello", "")
        if isinstance(raised.value, ProviderBusy):
            assert raised.value.retry_after == (7 if fault == "rate_limit" else None)
        assert "127.0.0.1" not in str(raised.value)
        await adapter.ping()


async def test_a_ping_notices_what_is_down(simulated: Simulated) -> None:
    for name, adapter in simulated.both:
        for fault in ("refuse", "error", "unauthorized"):
            simulated.app.faults.order(name, Fault(fault))
            with pytest.raises(ProviderFailed):
                await adapter.ping()
        simulated.app.faults.order(name, Fault("rate_limit"))
        if name == "elevenlabs":
            await adapter.ping()


async def test_a_voice_that_is_not_there(simulated: Simulated) -> None:
    with pytest.raises(ModelUnknown):
        await simulated.elevenlabs.speak("Hello", "x" * 20)


def test_what_counts_as_sound() -> None:
    assert media_type("audio/mpeg", b"x") == "audio/mpeg"
    assert media_type("application/octet-stream", b"x") == "audio/mpeg"
    for named, body in (("text/html", b"x"), ("application/json", b"{}"), ("audio/mpeg", b"")):
        with pytest.raises(ProviderFailed):
            media_type(named, body)
    with pytest.raises(TooLong):
        media_type("audio/mpeg", b"x" * (MAX_AUDIO + 1))


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, b'{"detail": {"status": "quota_exceeded", "message": "secret"}}', ProviderFailed),
        (400, b'{"detail": {"status": "invalid_api_key"}}', ProviderFailed),
        (400, b'{"detail": {"status": "voice_not_found"}}', ModelUnknown),
        (422, b'{"detail": [{"msg": "secret"}]}', RequestRefused),
        (404, b"not json", ProviderFailed),
        (418, b'{"detail": "teapot"}', ProviderFailed),
        (503, b'{"detail": {"status": "system_busy"}}', ProviderBusy),
    ],
)
def test_errors_of_elevenlabs(status: int, body: bytes, error: type[Exception]) -> None:
    found = refusal("model", status, {}, body, 0.0)
    assert isinstance(found, error)
    assert "secret" not in str(found)


class Mouth:
    """A provider that does as it is told."""

    def __init__(self, name: str, longest: int = 10_000) -> None:
        self.name = name
        self.longest = longest
        self.error: Exception | None = None
        self.hangs = False
        self.calls = 0
        self.asked = asyncio.Event()

    async def speak(self, text: str, voice: str) -> Speech:
        self.calls += 1
        self.asked.set()
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return Speech(text, b"sound", "audio/mpeg", self.name, "model")

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


class World:
    """Both providers under their circuits."""

    def __init__(self, names: Sequence[str] = ("elevenlabs", OPENAI_SPEECH), limit: float | None = None) -> None:
        self.clock = FakeClock()
        self.mouths = [Mouth(name) for name in names]
        self.guarded = [self._guarded(mouth, limit) for mouth in self.mouths]
        self.speeches = Speeches(self.guarded, self.clock)

    def _guarded(self, mouth: Mouth, limit: float | None) -> GuardedSpeech:
        row = speech_row(mouth.name)
        breaker = CircuitBreaker(
            row.id,
            failure_threshold=row.max_failures,
            recovery_timeout=row.open_seconds,
            success_threshold=1,
            classify=classify,
            clock=self.clock,
        )
        policy = RowPolicy(row, breaker=breaker, timeout=limit, clock=self.clock)
        return GuardedSpeech(mouth, policy, mouth.name, self.clock)

    def states(self) -> list[CircuitState]:
        return [one.policy.breaker.state for one in self.guarded]


def named(served: Served[Speech]) -> list[str]:
    return [one.fallback for one in served.degradations]


async def test_the_first_speaks_and_nothing_is_degraded() -> None:
    world = World()
    served = await world.speeches.speak("Hello")
    assert (served.value.provider, served.degraded) == ("elevenlabs", False)
    assert world.mouths[1].calls == 0


@pytest.mark.parametrize("error", [ProviderFailed("status 500"), ModelUnknown("x"), ProviderBusy("e", 5), OSError()])
async def test_the_second_speaks_for_the_first(error: Exception) -> None:
    world = World()
    world.mouths[0].error = error
    served = await world.speeches.speak("Hello")
    assert (served.value.provider, served.value.audio) == (OPENAI_SPEECH, b"sound")
    assert named(served) == [OPENAI_SPEECH]


async def test_the_text_when_nobody_speaks_and_later_without_asking() -> None:
    world = World()
    for mouth in world.mouths:
        mouth.error = ProviderFailed("status 500")
    for _ in range(SPEECH.max_failures + 2):
        served = await world.speeches.speak("Hello")
        assert (served.value, named(served)) == (Speech("Hello"), [TEXT_ONLY])
    assert [mouth.calls for mouth in world.mouths] == [SPEECH.max_failures] * 2
    assert world.states() == [CircuitState.OPEN] * 2
    assert served.degradations[0].circuit == "open"
    for mouth in world.mouths:
        mouth.error = None
    await world.clock.advance(SPEECH.open_seconds)
    assert not (await world.speeches.speak("Hello")).degraded
    assert world.states() == [CircuitState.CLOSED, CircuitState.OPEN]


@pytest.mark.parametrize("error", [RequestRefused("policy"), TooLong("long")])
async def test_what_a_provider_refuses_opens_nothing(error: Exception) -> None:
    world = World()
    world.mouths[0].error = world.mouths[1].error = error
    for _ in range(5):
        assert named(await world.speeches.speak("Hello")) == [TEXT_ONLY]
    assert world.mouths[1].calls == (0 if type(error) is RequestRefused else 5)
    assert world.states() == [CircuitState.CLOSED] * 2


async def test_a_busy_provider_is_left_alone_until_it_said() -> None:
    world = World()
    world.mouths[0].error = ProviderBusy("elevenlabs", 20)
    for _ in range(4):
        assert named(await world.speeches.speak("Hello")) == [OPENAI_SPEECH]
    assert world.mouths[0].calls == 1
    assert world.states()[0] is CircuitState.CLOSED
    world.mouths[0].error = None
    await world.clock.advance(20)
    assert not (await world.speeches.speak("Hello")).degraded


async def test_a_text_too_long_for_one_goes_to_the_other() -> None:
    world = World((OPENAI_SPEECH, "elevenlabs"))
    world.mouths[0].longest = 5
    assert named(await world.speeches.speak("Hello there")) == ["elevenlabs"]
    world.mouths[1].longest = 5
    assert named(await world.speeches.speak("Hello there")) == [TEXT_ONLY]
    assert [mouth.calls for mouth in world.mouths] == [0, 1]


async def test_without_any_provider_it_is_the_text() -> None:
    served = await Speeches(()).speak("Hello")
    assert (served.value, named(served)) == (Speech("Hello"), [TEXT_ONLY])


async def test_one_that_hangs_leaves_the_other_its_time() -> None:
    world = World(limit=30.0)
    world.mouths[0].hangs = True
    with deadline_scope(10.2, clock=world.clock):
        asked = asyncio.create_task(world.speeches.speak("Hello"))
        await world.mouths[0].asked.wait()
        await world.clock.advance(5.01)
        served = await asked
    assert named(served) == [OPENAI_SPEECH]


async def test_all_time_used_up_is_still_the_text() -> None:
    world = World()
    with deadline_scope(0.05, clock=world.clock):
        served = await world.speeches.speak("Hello")
    assert named(served) == [TEXT_ONLY]
    assert [mouth.calls for mouth in world.mouths] == [0, 0]


async def test_wrong_requests() -> None:
    for text, voice in (("", ""), (" ", ""), ("x" * 10_001, ""), ("x", "a b"), ("x", "v" * 51)):
        with pytest.raises(Invalid):
            await World().speeches.speak(text, voice)
