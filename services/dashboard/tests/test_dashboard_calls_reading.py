"""Calls are read from whatever is stored, or left out (tolerant reading)."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dashboard.inbound.http.calls import call_body
from dashboard.outbound.calls import call_of

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
NAMES = ("room_id", "room_name", "owner_id", "started_at", "ended_at", "participants", "quality", "updated_at")


@given(st.fixed_dictionaries({"id": VALUES}, optional=dict.fromkeys(NAMES, VALUES)))
def test_a_call_of_any_data_is_read_or_left_out(fields: dict[str, Any]) -> None:
    call = call_of(fields)
    assert call is None or call_body(call)["id"]
