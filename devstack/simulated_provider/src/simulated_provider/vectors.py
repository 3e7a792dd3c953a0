"""Embeddings without a model: each word gives a few coordinates, so texts that share words are near each other."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from array import array
from functools import lru_cache

DIMENSIONS = 1536
_WORD = re.compile(r"\w+")
_PLACES = 8


@lru_cache(maxsize=16_384)
def _places(word: str) -> tuple[tuple[int, float], ...]:
    """Coordinates of a word and their signs."""
    digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=3 * _PLACES).digest()
    thirds = (digest[at : at + 3] for at in range(0, len(digest), 3))
    return tuple((int.from_bytes(three[:2], "big"), 1.0 if three[2] & 1 else -1.0) for three in thirds)


def vector_of(text: str, dimensions: int = DIMENSIONS) -> array[float]:
    """A unit vector, the same for the same text."""
    found = array("f", bytes(4 * dimensions))
    words = [word.lower() for word in _WORD.findall(text)] or [text]
    for word in words:
        for place, sign in _places(word):
            found[place % dimensions] += sign
    length = math.sqrt(sum(value * value for value in found))
    if not length:
        found[0] = length = 1.0
    return array("f", (value / length for value in found))


def as_base64(vector: array[float]) -> str:
    """As OpenAI packs it: little-endian floats of 32 bits."""
    return base64.b64encode(vector.tobytes()).decode()
