"""Tolerant reading: rows and copies that another version of the service wrote, or that have nulls where none should be.

The one place where stored data becomes values of the domain. A field that is missing, null or of another type gets its
default; a row without what identifies it cannot be read, and says so for itself alone: a list leaves it out, and is
served.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dashboard.model import Credentials, User

ROLES = ("user", "admin")


def text(value: Any, default: str = "") -> str:
    """A text, without what JSON or PostgreSQL could not carry."""
    return value if isinstance(value, str) else default


def number(value: Any, default: float = 0.0) -> float:
    """A finite number."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else default


def whole(value: Any, default: int = 0) -> int:
    """A whole number; one with nothing behind the point counts."""
    return int(number(value, default))


def user(fields: Mapping[str, Any]) -> User | None:
    """An account; None when nobody can tell whose it is. An unknown role has no rights."""
    if not (user_id := text(fields.get("id"))):
        return None
    role = text(fields.get("role"), "user")
    created = number(fields.get("created_at"))
    return User(
        id=user_id,
        email=text(fields.get("email")),
        display_name=text(fields.get("display_name")),
        role=role if role in ROLES else "user",
        created_at=created,
        updated_at=number(fields.get("updated_at"), created),
        revision=max(0, whole(fields.get("revision"), 1)),
    )


def user_copy(value: Any) -> User | None:
    """An account from the plain data of a copy."""
    return user(value) if isinstance(value, Mapping) else None


def credentials_copy(value: Any) -> Credentials | None:
    """What a login is checked against; None when a part is missing, as half of it is worth nothing."""
    if not isinstance(value, Mapping):
        return None
    user_id, password_hash = text(value.get("user_id")), text(value.get("password_hash"))
    role = text(value.get("role"), "user")
    return Credentials(user_id, password_hash, role if role in ROLES else "user") if user_id and password_hash else None
