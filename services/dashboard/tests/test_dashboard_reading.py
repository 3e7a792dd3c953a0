"""Tolerant reading: whatever is stored, a list is served, and what cannot be read is named beside it."""

from __future__ import annotations

import base64
import math
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import orjson
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from dashboard.inbound.http.doors import listed
from dashboard.inbound.http.users import user_body
from dashboard.model import CursorInvalid, User
from dashboard.outbound import reading, users
from dashboard.outbound.postgres import Database
from dashboard.outbound.users import PostgresUsers
from resilience import Operation
from service_kit.copies import _decode

FIELDS = ("id", "email", "display_name", "role", "created_at", "updated_at", "revision")

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.decimals()
    | st.sampled_from([math.inf, -math.inf, math.nan, 10**400, -(10**400), 2**63, 1e308, Decimal("sNaN")])
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=5
)
rows = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), anything, max_size=9)


@given(rows)
def test_an_account_is_read_from_anything_or_is_not_one(row: dict[str, Any]) -> None:
    user = reading.user(row)
    assert (user is None) == (not isinstance(row.get("id"), str) or not row["id"])
    if user is not None:
        orjson.dumps(user_body(user))
        assert user.role in reading.ROLES
        assert user.revision >= 0


@given(st.lists(rows | anything, max_size=8))
def test_a_list_never_fails_and_loses_nothing_silently(stored: list[Any]) -> None:
    found, unreadable = reading.items(stored, reading.user_copy)
    assert len(found) + len(unreadable) == len(stored)
    left_out = {one.position for one in unreadable}
    assert found == [reading.user_copy(row) for at, row in enumerate(stored) if at not in left_out]
    assert len(listed([], None, unreadable).get("unreadable", [])) == len(unreadable)
    orjson.dumps(listed([user_body(user) for user in found], None, unreadable))


@given(anything)
def test_credentials_are_whole_or_none(value: Any) -> None:
    found = reading.credentials_copy(value)
    assert found is None or (found.user_id and found.password_hash)


@given(anything, st.binary(max_size=40))
def test_a_copy_that_another_version_wrote_is_read_or_is_none(value: Any, raw: bytes) -> None:
    for copy in (raw, b"1 " + raw, b"1 " + orjson.dumps(value, default=str) if encodable(value) else b""):
        found = _decode(copy)
        if found is not None:
            assert 0 <= found.as_of <= 253_402_300_799
            reading.user_copy(found.value)


def encodable(value: Any) -> bool:
    try:
        orjson.dumps(value, default=str)
    except TypeError:
        return False
    return True


def test_a_row_of_a_newer_version_keeps_what_this_one_knows() -> None:
    row = {"id": "1", "email": "a@example.org", "role": "auditor", "created_at": 5, "avatar": "x", "revision": 2.0}
    assert reading.user(row) == User("1", "a@example.org", "", "user", 5.0, 5.0, 2)


def test_values_of_every_kind() -> None:
    assert reading.number(Decimal("12.50")) == 12.5
    assert reading.number(True) == 0.0
    assert reading.whole(2**62 + 1) == 2**62 + 1
    assert reading.moment("2020") == 0.0
    assert reading.mapping('{"a": 1}') == {"a": 1}
    assert reading.mapping("[1]") == {}
    assert reading.sequence("[1]") == [1]
    assert reading.sequence("nonsense") == ()


def test_a_reader_that_fails_spoils_its_own_row_only() -> None:
    rows: list[dict[str, Any]] = [{"id": "a", "n": 1}, {"id": "b"}, {"id": "c", "n": 3}]
    found, unreadable = reading.items(rows, lambda row: row["n"])
    assert found == [1, 3]
    assert [(one.position, one.id) for one in unreadable] == [(1, "b")]
    body = listed([], None, unreadable)
    assert body["unreadable"] == [{"id": "b", "position": 1, "error": "It is in a form that this version cannot read."}]


# -- on PostgreSQL, with its rules gone

LOOSE = """ALTER TABLE users ALTER email DROP NOT NULL, ALTER display_name DROP NOT NULL, ALTER role DROP NOT NULL,
    ALTER created_at DROP NOT NULL, ALTER updated_at DROP NOT NULL, ALTER revision DROP NOT NULL,
    ALTER password_hash DROP NOT NULL, DROP CONSTRAINT pk_users, ALTER id DROP NOT NULL"""
STRICT = """ALTER TABLE users ADD CONSTRAINT pk_users PRIMARY KEY (id), ALTER email SET NOT NULL,
    ALTER display_name SET NOT NULL, ALTER role SET NOT NULL, ALTER created_at SET NOT NULL,
    ALTER updated_at SET NOT NULL,
    ALTER revision SET NOT NULL, ALTER password_hash SET NOT NULL"""


@pytest_asyncio.fixture(loop_scope="session")
async def loose(database: Database) -> AsyncIterator[Database]:
    """The table takes nulls everywhere."""
    await database.fetch(LOOSE)
    yield database
    await database.fetch("TRUNCATE users")
    await database.fetch(STRICT)


def uid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


async def person(database: Database, number: int) -> None:
    new = {"id": uid(number), "email": f"{number}@example.org", "display_name": f"P{number}", "password_hash": "x"}
    operation = Operation(f"op-{number}", "user.create", f"user:{uid(number)}", uid(number), new)
    await PostgresUsers(database).create(operation)


@pytest.mark.asyncio(loop_scope="session")
async def test_rows_with_nulls_are_listed_page_by_page(loose: Database) -> None:
    for number in range(9):
        await person(loose, number)
    spoil = "UPDATE users SET {} = NULL WHERE id = $1"
    for number, column in enumerate(("email", "display_name", "role", "created_at", "updated_at", "revision", "id")):
        await loose.fetch(spoil.format(column), uid(number))
    await loose.fetch("UPDATE users SET created_at = NULL, email = NULL WHERE id = $1", uid(7))
    await loose.fetch("UPDATE users SET created_at = 'infinity', updated_at = '-infinity' WHERE id = $1", uid(8))
    for limit in (1, 2, 3, 50):
        found, unreadable = await everything(PostgresUsers(loose), limit)
        assert sorted(user.id for user in found) == [uid(number) for number in (0, 1, 2, 3, 4, 5, 7, 8)]
        assert unreadable == 1
        orjson.dumps([user_body(user) for user in found])
    by_id = {user.id: user for user in found}
    assert (by_id[uid(0)].email, by_id[uid(1)].display_name, by_id[uid(2)].role) == ("", "", "user")
    assert by_id[uid(4)].updated_at == by_id[uid(4)].created_at > 0
    assert (await PostgresUsers(loose).get(uid(3))).created_at == 0.0


async def everything(store: PostgresUsers, limit: int) -> tuple[list[User], int]:
    """All pages, and how many items were left out."""
    found: list[User] = []
    unreadable, cursor = 0, None
    for _ in range(20):
        page = await store.page(limit, cursor)
        found += page.items
        unreadable += len(page.unreadable)
        if (cursor := page.next_cursor) is None:
            return found, unreadable
    raise AssertionError("the list has no end")


@pytest.mark.asyncio(loop_scope="session")
async def test_a_login_with_nothing_to_check_against_fails_as_a_wrong_password(loose: Database) -> None:
    await person(loose, 1)
    await loose.fetch("UPDATE users SET password_hash = NULL, role = 'owner'")
    found = await PostgresUsers(loose).login("1@example.org")
    assert found is not None
    assert (found[0].password_hash, found[0].role) == ("", "user")


@pytest.mark.parametrize("inner", ['["NaN", ""]', "[]", "{}", '[1e300, "{0}"]', '[NaN, "{0}"]', "7", '["x", "{0}"]'])
def test_a_cursor_that_no_list_gave(inner: str) -> None:
    cursor = base64.urlsafe_b64encode(inner.replace("{0}", uid(1)).encode()).decode()
    for one in (cursor, "%%%", "é", "a"):
        with pytest.raises(CursorInvalid):
            users._decode_cursor(one)
