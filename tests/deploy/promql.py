"""Which metrics, with which labels, an expression asks for: a rough reading, for expressions such as ours."""

from __future__ import annotations

import re

_KEYWORDS = frozenset({"and", "or", "unless", "bool", "offset", "on", "by"})
_GROUPING = re.compile(r"\b(?:by|on|without) \(([^)]*)\)")
_SELECTOR = re.compile(r"\b([a-zA-Z_]\w*)\b(?!\s*\()(?:\{([^}]*)\})?")
_LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')


def selectors(expr: str) -> list[tuple[str, set[str]]]:
    """Each metric of the expression with the labels that it is chosen by."""
    bare = re.sub(r"\[[^]]*\]", "", _GROUPING.sub("", expr))
    found = _SELECTOR.findall(re.sub(r'"(?:[^"{}])*"', '""', bare))
    return [(name, set(_LABEL.findall(labels))) for name, labels in found if name not in _KEYWORDS]


def grouped(expr: str) -> set[str]:
    """The labels that the expression keeps."""
    return {name.strip() for names in _GROUPING.findall(expr) for name in names.split(",")}
