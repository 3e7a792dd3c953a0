"""Reads the JSON of providers: strictly, fast, and without what neither PostgreSQL nor protobuf can carry."""

import json
from typing import Any

import orjson

from ai_core.ports import ProviderFailed


def read(data: bytes) -> dict[str, Any]:
    """The JSON object in ``data``, its texts clean. Raises ProviderFailed."""
    try:
        value = orjson.loads(data)
        if b"\\u0000" in data:
            value = clean(value)
    except ValueError:
        value = _lenient(data)
    if not isinstance(value, dict):
        raise ProviderFailed("an answer that is no JSON object")
    return value


def _lenient(data: bytes) -> Any:
    """The same for texts with halves of surrogate pairs, which models make and orjson refuses."""
    try:
        return orjson.loads(orjson.dumps(clean(json.loads(data))))
    except (ValueError, TypeError, RecursionError):
        raise ProviderFailed("an answer that is no JSON") from None


def clean(value: Any) -> Any:
    """The value, its texts without NUL and halves of surrogate pairs. Raises ValueError when nested too deeply."""
    try:
        return _clean(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", "").encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value
