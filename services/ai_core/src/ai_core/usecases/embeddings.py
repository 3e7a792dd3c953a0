"""Vectors of texts: from the configured provider, and from the local model when that is gone (row A4).

Vectors of different models do not compare. So only who leaves the choice of the model to us gets the other model's,
with its name; who asks for a model gets that one's or an error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ai_core.degradation import LOCAL_EMBEDDING
from ai_core.model import EMBEDDED_TEXTS, MODEL_LIMIT, Invalid, ModelNotOffered
from ai_core.ports import EmbeddingBusy, EmbeddingModel, LocalModel, ModelUnknown, ProviderBusy, ProviderFailed, Vectors
from resilience import MISSING, RowPolicy, Rung, Served, hard_timeout
from resilience.fallback import Missing

LOCAL: Final = "local"
"""What callers and settings call the local model."""
ASK_LIMIT: Final = 0.8
"""Seconds for one text that somebody waits for."""
BATCH_LIMIT: Final = 5.0
"""Seconds for many."""
CHARACTERS: Final = 30_000
"""Of one text; a provider counts tokens, and may refuse sooner."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of length 1, one per text, in order, and the model that made them."""

    vectors: list[list[float]]
    model: str
    prompt_tokens: int
    simulated: bool


class Embeddings:
    """``primary``: the configured model; the local one itself when no provider is configured.

    ``named``: a provider's model by its name, None when there is no provider. ``policy``: row A4, the provider's.
    """

    def __init__(
        self,
        primary: EmbeddingModel,
        local: LocalModel,
        policy: RowPolicy,
        named: Callable[[str], EmbeddingModel] | None = None,
    ) -> None:
        self.primary = primary
        self.local = local
        self.policy = policy
        self._named = named

    @property
    def models(self) -> list[EmbeddingModel]:
        """Of which every memory gets a vector: the local one always, so that it can serve at once."""
        return [self.local] if self.primary is self.local else [self.local, self.primary]

    async def of_texts(self, texts: Sequence[str], model: str = "") -> Served[Embedded]:
        """Vectors of some texts.

        Raises Invalid, ModelNotOffered, RequestRefused; without a model that can serve ProviderFailed, ProviderBusy, or
        what the policy raises.
        """
        _check(texts, model)
        try:
            if not model:
                return (await self.made(texts, BATCH_LIMIT)).map(_embedded)
            return Served(_embedded(await self.by(self._model(model), texts, BATCH_LIMIT)))
        except ModelUnknown:
            raise ModelNotOffered from None
        except EmbeddingBusy as error:
            raise ProviderBusy(LOCAL, 1.0) from error

    async def soon(self, text: str) -> Vectors | None:
        """The local vector of a text, if it is there in a moment."""
        return await self.local.soon(text)

    async def made(self, texts: Sequence[str], limit: float = ASK_LIMIT) -> Served[Vectors]:
        """Vectors by the configured model, or, marked, by the local one.

        Raises as ``of_texts``, EmbeddingBusy, ModelUnknown.
        """
        if self.primary is self.local:
            return Served(await self.local.embed(texts, limit))

        async def locally(_: BaseException) -> Vectors | Missing:
            try:
                return await self.local.embed(texts, limit)
            except (ProviderFailed, EmbeddingBusy):
                return MISSING

        return await self.policy.serve(lambda: _timed(self.primary, texts, limit), Rung(LOCAL_EMBEDDING, locally))

    async def by(self, model: EmbeddingModel, texts: Sequence[str], limit: float = BATCH_LIMIT) -> Vectors:
        """Vectors by just this model. Raises as ``made``."""
        if model is self.local:
            return await self.local.embed(texts, limit)
        return await self.policy.call(lambda: _timed(model, texts, limit))

    def _model(self, name: str) -> EmbeddingModel:
        """Raises ModelNotOffered."""
        if name in (LOCAL, self.local.name):
            return self.local
        if name in (self.primary.name, self.primary.name.partition(":")[2]):
            return self.primary
        if self._named is None:
            raise ModelNotOffered
        return self._named(name)


async def _timed(model: EmbeddingModel, texts: Sequence[str], limit: float) -> Vectors:
    return await hard_timeout(model.embed(texts), limit, name=model.name)


def _embedded(vectors: Vectors) -> Embedded:
    return Embedded(vectors.values, vectors.model, vectors.tokens, vectors.simulated)


def _check(texts: Sequence[str], model: str) -> None:
    problems = {}
    if not 1 <= len(texts) <= EMBEDDED_TEXTS:
        problems["input"] = f"must be 1 to {EMBEDDED_TEXTS} texts"
    elif not all(text and len(text) <= CHARACTERS for text in texts):
        problems["input"] = f"each text must have 1 to {CHARACTERS} characters"
    if len(model) > MODEL_LIMIT:
        problems["model"] = f"must have at most {MODEL_LIMIT} characters"
    if problems:
        raise Invalid(problems)
