"""The local model: it finds paraphrases that no word search can, without blocking anybody, and may be missing."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai_core.model import Memory
from ai_core.outbound import local_embedding
from ai_core.outbound.local_embedding import DIMENSIONS, QUEUE, LocalEmbedding
from ai_core.ports import EmbeddingBusy, ProviderFailed
from ai_core.usecases.words import holding
from resilience import FakeClock

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASKED = {
    "How do I get into the house when I forgot the key?": "A spare one lies under the third flowerpot by the door.",
    "What should I not serve Tom for dinner?": "My brother gets a rash from peanuts and shellfish.",
    "When is my next dentist visit?": "Teeth cleaning at Dr. Weber's practice on the 14th of March.",
    "Which wine did we like?": "That dry Riesling from the Moselle was delicious.",
    "Where did I leave the car?": "Parked the vehicle on level 3, row B of the airport garage.",
    "What is the WiFi password?": "Internet access code of the router: sunflower-77.",
    "Who fixes the heating?": "Call Mr. Brandt if the boiler stops working.",
    "What size shoes does my daughter wear?": "Lena's feet are a 34 now.",
    "How long does the train to Berlin take?": "By rail to the capital it is four hours and ten minutes.",
    "What present could I give my mother?": "Mum would love a watercolour painting set for her birthday.",
    "Why was the invoice rejected?": "Accounting sent the bill back because the tax number was missing.",
    "Which medicine do I take in the morning?": "Swallow one tablet of ramipril after breakfast.",
    "What was the name of that Italian restaurant?": "We had great pasta at Da Enzo near the river.",
    "When does the warranty of the laptop end?": "The guarantee for my notebook computer expires in June 2027.",
    "How do I water the orchids?": "Dip the exotic flowers in a bucket once a week for ten minutes.",
    "What did the doctor say about my knee?": "The physician advised against jogging until the joint has healed.",
    "Which films do I still want to see?": "Movies to watch: Metropolis, Stalker, Playtime.",
    "Where is the passport?": "Travel documents are in the grey folder in the desk drawer.",
    "How much did the new roof cost?": "The tiler charged 18,400 euros for covering the top of the building.",
    "Who looks after the cat during holidays?": "Our neighbour Ida feeds the pet when we are away.",
    "What is the best time for the gym?": "The fitness studio is nearly empty before seven a.m.",
    "How can I calm the baby down?": "The infant stops crying when you hum and walk slowly.",
    "Which trains are late the most?": "Delays on the railway happen mainly on Friday evenings.",
    "What language is Marta learning?": "My colleague takes Portuguese lessons on Tuesdays.",
    "When do the neighbours collect rubbish?": "The bins have to be outside on Wednesday night.",
    "What made the cake so good?": "The secret of the gateau was browned butter and a pinch of salt.",
    "How do I restart the server?": "Reboot the machine with the script in the ops folder.",
    "Which bank has our mortgage?": "The home loan is with Sparkasse, fixed until 2031.",
    "What scared the dog?": "Rex hides under the bed because of thunder and fireworks.",
    "Where will the conference be?": "This year's meeting of the society takes place in Lisbon.",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def local() -> AsyncIterator[LocalEmbedding]:
    model = LocalEmbedding()
    await model.load()
    assert not model.missing
    yield model
    await model.close()


def dot(one: list[float], other: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


async def test_it_finds_what_word_search_cannot(local: LocalEmbedding) -> None:
    notes, questions = list(ASKED.values()), list(ASKED)
    vectors = (await local.embed(notes)).values
    first = within = 0
    for number, asked in enumerate((await local.embed(questions)).values):
        order = sorted(range(len(notes)), key=lambda note: dot(asked, vectors[note]), reverse=True)
        first += order[0] == number
        within += number in order[:3]
        assert dot(asked, vectors[number]) > 0.1, questions[number]
    assert first >= 25, first
    assert within == len(questions)
    memories = [Memory(str(number), "owner", note, (), "ready", 0.0) for number, note in enumerate(notes)]
    assert [match for question in questions for match in holding(memories, question)] == []


async def test_it_is_the_model_that_it_says(local: LocalEmbedding) -> None:
    """Source of the numbers: sentence-transformers with the unquantised model (0.7554, -0.1055, 0.1367 ± 0.01)."""
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    made = await local.embed([*texts, "A cheetah is running behind its prey."])
    assert made.model == local_embedding.NAME
    assert made.tokens > 20
    eating, *others = made.values
    assert [dot(eating, other) for other in others] == pytest.approx([0.7554, -0.1055, 0.1367], abs=0.02)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(min_size=1, max_size=300))
async def test_any_text_has_a_vector_of_length_one(local: LocalEmbedding, text: str) -> None:
    made = (await local.embed([text])).values[0]
    assert len(made) == DIMENSIONS
    assert math.hypot(*made) == pytest.approx(1.0, abs=1e-5)


async def test_all_parts_of_a_long_text_count(local: LocalEmbedding) -> None:
    filler = "The committee discussed the agenda of the following session at length. " * 12
    hidden = "The treasure is buried below the old oak tree."
    long, alone, asked = (
        await local.embed([filler + hidden * 12, filler, "Where did the pirates hide their gold?"])
    ).values
    assert dot(asked, long) > dot(asked, alone) + 0.1


async def test_the_event_loop_goes_on_while_it_works(local: LocalEmbedding) -> None:
    """The loop is never held up for long, whatever the model does meanwhile."""
    text = "A rather long sentence about nothing in particular, which has to be read. " * 60
    work = asyncio.ensure_future(local.embed([text] * 2))
    gaps, last = [], time.monotonic()
    while not work.done():
        await asyncio.sleep(0.001)
        gaps.append(time.monotonic() - last)
        last = time.monotonic()
    await work
    assert len(gaps) > 20
    assert sorted(gaps)[len(gaps) // 2] < 0.05


async def test_soon_is_for_short_texts_and_an_idle_model(local: LocalEmbedding) -> None:
    assert await local.soon("x" * 5_000) is None
    busy = asyncio.ensure_future(local.embed(["word " * 2_000]))
    await asyncio.sleep(0)
    assert await local.soon("short") is None
    assert not busy.done(), "it was not waited for"
    await busy
    assert await LocalEmbedding().soon("it is not even loaded") is None


async def test_its_queue_is_bounded(local: LocalEmbedding) -> None:
    made = await asyncio.gather(*(local.embed(["some words"]) for _ in range(QUEUE + 20)), return_exceptions=True)
    refused = [one for one in made if isinstance(one, BaseException)]
    assert refused
    assert {type(one) for one in refused} == {EmbeddingBusy}


@pytest.mark.parametrize("broken", ["model", "tokenizer", "both"])
async def test_a_missing_or_broken_model_is_said_and_looked_for_again(
    tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"not what it should be")
    clock = FakeClock()
    files = {name: bad for name in ("model", "tokenizer") if broken in (name, "both")}
    model = LocalEmbedding(clock=clock, **files)
    await model.load()
    assert model.missing
    with pytest.raises(ProviderFailed):
        await model.embed(["text"])
    monkeypatch.setattr(model, "_files", (None, None))
    with pytest.raises(ProviderFailed):  # not before its time
        await model.embed(["text"])
    await clock.advance(local_embedding.AGAIN + 1)
    assert len((await model.embed(["text"])).values[0]) == DIMENSIONS
    assert not model.missing
    await model.close()


async def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_embedding, "_MODEL", ("there_is_no_such_package", "model.onnx"))
    model = LocalEmbedding()
    with pytest.raises(ProviderFailed):
        await model.ping()
    await model.close()


async def test_its_memory_is_given_back_when_nobody_needs_it() -> None:
    clock = FakeClock()
    model = LocalEmbedding(clock=clock)
    watching = asyncio.ensure_future(model.watch())
    await model.load()
    await clock.advance(local_embedding.IDLE / 2)
    await model.embed(["used"])
    await clock.advance(local_embedding.IDLE / 2 + local_embedding.LOOK)
    assert model.loaded
    await clock.advance(local_embedding.IDLE)
    for _ in range(1_000):  # in its thread
        if not model.loaded:
            break
        await asyncio.sleep(0.01)
    assert not model.loaded
    assert len((await model.embed(["used again"])).values[0]) == DIMENSIONS
    watching.cancel()
    await model.close()
