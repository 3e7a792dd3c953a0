"""Finding texts by their words without a database: what its full-text search finds, for a few texts at hand."""

import re
from collections.abc import Sequence

from ai_core.model import Match, Memory

_WORD = re.compile(r"\w+")


def holding(memories: Sequence[Memory], query: str) -> list[Match]:
    """The memories with all words of the query, best first: the score is from 0.5 up, by the share of their words."""
    asked = words(query)
    found = [
        Match(memory, 0.5 + len(asked) / (2 * len(said)))
        for memory in memories
        if asked and asked <= (said := words(memory.text))
    ]
    return sorted(found, key=lambda match: (match.score, match.memory.created_at), reverse=True)


def words(text: str) -> set[str]:
    """The different words, in lower case."""
    return set(_WORD.findall(text.lower()))
