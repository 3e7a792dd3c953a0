"""Tolerant reading: rows and copies that another version of the service wrote, or that have nulls where none should be.

The one place where stored data becomes values of the domain. A field that is missing, null or of another type gets its
default; a row without what identifies it cannot be read, and says so for itself alone: a list leaves it out, names it,
and is served.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeVar

import orjson

from dashboard.model import Credentials, Unreadable, User

T = TypeVar("T")

ROLES = ("user", "admin")
_FIRST_MOMENT, _LAST_MOMENT = -62_135_596_800.0, 253_402_300_799.0
"""The years 1 to 9999, in unix seconds: what an RFC 3339 date can say."""
_MOST = 2**63 - 1


def text(value: Any, default: str = "") -> str:
    """A text; what UTF-8 cannot say (lone surrogates) becomes question marks, as no answer could carry it."""
    if not isinstance(value, str):
        return default
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def number(value: Any, default: float = 0.0) -> float:
    """A finite number; PostgreSQL's ``numeric`` is one."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return default
    try:
        found = float(value)
    except (OverflowError, ValueError):  # too large, a signalling NaN
        return default
    return found if math.isfinite(found) else default


def whole(value: Any, default: int = 0) -> int:
    """A whole number of 64 bits; of one with something behind the point the part before it."""
    found = value if isinstance(value, int) and not isinstance(value, bool) else math.trunc(number(value, default))
    return found if -_MOST <= found <= _MOST else default


def moment(value: Any, default: float = 0.0) -> float:
    """Unix seconds that a date can be made of."""
    found = number(value, default)
    return found if _FIRST_MOMENT <= found <= _LAST_MOMENT else default


def mapping(value: Any) -> Mapping[str, Any]:
    """An object, also as JSON text (a ``jsonb`` column); empty when it is none."""
    found = _parsed(value)
    return found if isinstance(found, Mapping) else {}


def sequence(value: Any) -> Sequence[Any]:
    """An array, also as JSON text (a ``jsonb`` column); empty when it is none."""
    found = _parsed(value)
    return found if isinstance(found, list | tuple) else ()


def _parsed(value: Any) -> Any:
    try:
        return orjson.loads(value) if isinstance(value, str | bytes) else value
    except orjson.JSONDecodeError:
        return None


def items(rows: Iterable[T], read: Callable[[T], Any]) -> tuple[list[Any], tuple[Unreadable, ...]]:
    """What ``read`` makes of each row, and those of which it makes nothing: it returns None for them, or fails."""
    found, unreadable = [], []
    for position, row in enumerate(rows):
        try:
            item, error = read(row), "It lacks what identifies it."
        except Exception:  # noqa: BLE001 - whatever is wrong with one row is wrong with this row alone
            item, error = None, "It is in a form that this version cannot read."
        if item is None:
            unreadable.append(Unreadable(position, error, _id_of(row)))
        else:
            found.append(item)
    return found, tuple(unreadable)


def _id_of(row: Any) -> str | None:
    try:
        return text(row["id"]) or None
    except (TypeError, LookupError):
        return None


def user(fields: Mapping[str, Any]) -> User | None:
    """An account; None when nobody can tell whose it is. An unknown role has no rights."""
    if not (user_id := text(fields.get("id"))):
        return None
    created = moment(fields.get("created_at"))
    return User(
        id=user_id,
        email=text(fields.get("email")),
        display_name=text(fields.get("display_name")),
        role=role(fields.get("role")),
        created_at=created,
        updated_at=moment(fields.get("updated_at"), created),
        revision=max(0, whole(fields.get("revision"), 1)),
    )


def role(value: Any) -> str:
    """A role that this version knows; any other has no more rights than a user."""
    return value if isinstance(value, str) and value in ROLES else "user"


def user_copy(value: Any) -> User | None:
    """An account from the plain data of a copy."""
    return user(value) if isinstance(value, Mapping) else None


def credentials_copy(value: Any) -> Credentials | None:
    """What a login is checked against; None when a part is missing, as half of it is worth nothing."""
    if not isinstance(value, Mapping):
        return None
    user_id, password_hash = text(value.get("user_id")), text(value.get("password_hash"))
    return Credentials(user_id, password_hash, role(value.get("role"))) if user_id and password_hash else None
