"""What the simulated provider says: deterministic, short, and never to be taken for a language model's answer.

The same conversation always gets the same answer, so tests can predict it; the text itself names its origin, because
a label in the JSON alone would be lost as soon as somebody copies the text.
"""

import re
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

LABEL = "[simulated]"
_TRANSLATION = re.compile(r'[Tt]ranslate\b[^"]{0,100}\binto\b[^"]{0,40}"([^"\n]{2,40})"')
QUOTE_LIMIT = 120
"""Characters of the question that the answer repeats."""
_FILLING = ("These ", "words ", "only ", "fill ", "the ", "answer ", "up. ")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_PIECE = re.compile(r"\S+\s*|\s+")


def question_in(messages: Sequence[dict[str, Any]]) -> str:
    """The text of the last user message; empty when there is none."""
    for message in reversed(messages):
        if message.get("role") == "user":
            return text_of(message.get("content"))
    return ""


def text_of(content: object) -> str:
    """The plain text of a message's content, which OpenAI allows as a string or as a list of typed parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return " ".join(part for part in parts if isinstance(part, str))
    return ""


def answer_to(messages: Sequence[dict[str, Any]]) -> str:
    """The answer to a conversation: quotes the question briefly and says how many messages came before it.

    Asked for a translation it gives the text back, with the language that it should have been in.
    """
    if language := _language_in(messages):
        return f"{LABEL} ({language}) {question_in(messages)}"
    question = " ".join(question_in(messages).split())
    quoted = question if len(question) <= QUOTE_LIMIT else question[: QUOTE_LIMIT - 1] + "…"
    turns = sum(1 for message in messages if message.get("role") in ("user", "assistant"))
    return f"{LABEL} You said: “{quoted}” (message {turns} of this conversation). No language model was asked."


def _language_in(messages: Sequence[dict[str, Any]]) -> str:
    """The language that the system message wants a translation into; empty when it wants none."""
    first = messages[0] if messages else {}
    found = _TRANSLATION.search(text_of(first.get("content"))) if first.get("role") == "system" else None
    return found.group(1) if found else ""


def tokens_in(text: str) -> int:
    """A rough token count, words and punctuation marks: enough to fill the `usage` member."""
    return len(_TOKEN.findall(text))


def pieces_of(text: str) -> list[str]:
    """The text cut after each space, as a model would stream it; joined again it is the same text."""
    return _PIECE.findall(text)


def said(messages: Sequence[dict[str, Any]], least: int = 0, most: int | None = None) -> tuple[list[str], bool]:
    """The answer in pieces, of at least and at most so many, and whether it was cut off."""
    pieces = pieces_of(answer_to(messages))
    if len(pieces) < least:
        pieces[-1] += " "
        pieces += islice(cycle(_FILLING), least - len(pieces))
    if most is not None and len(pieces) > most:
        return pieces[:most], True
    return pieces, False
