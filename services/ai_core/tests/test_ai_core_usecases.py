"""What AI Core checks and works out by itself: texts, cursors, histories, and reads with waiting writes in them."""

from dataclasses import replace
from typing import Any

import pytest

from ai_core.degradation import ROWS
from ai_core.model import Agent, Conversation, Cursor, Invalid, Page, Turn, checked, page_of, recent
from ai_core.usecases.waiting import agent_after, agents_changed, conversation_after, overlaid
from resilience import Operation

ALICE = "alice"
IDS = [f"00000000-0000-0000-0000-{number:012d}" for number in range(10)]


def test_the_declared_rows_are_those_of_the_matrix() -> None:
    declared = {row.label: (row.max_failures, row.open_seconds) for row in ROWS}
    assert declared == {
        "A1": (5, 60),
        "A2": (3, 30),
        "A3": (3, 30),
        "A4": (3, 30),
        "A5": (3, 30),
        "A6": (5, 60),  # it follows A1
    }


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"name": ""}, {"name"}),
        ({"name": " \t"}, {"name"}),
        ({"name": "x" * 101}, {"name"}),
        ({"name": "a\x00b"}, {"name"}),
        ({"name": "\ud800"}, {"name"}),
        ({"name": "", "system_prompt": "x" * 20_001}, {"name", "system_prompt"}),
        ({"model": "gpt 4"}, {"model"}),
        ({"message": "x" * 20_001}, {"message"}),
        ({"shoe_size": "44"}, {"shoe_size"}),
    ],
)
def test_every_wrong_text_is_named(fields: dict[str, str], wrong: set[str]) -> None:
    with pytest.raises(Invalid) as raised:
        checked(fields)
    assert raised.value.fields.keys() == wrong


@pytest.mark.parametrize("text", ["x", "====", "YQ==", "MTox", "é", "OTk5OTk5OTk5OTk5OTk5OTk5OTphYmM="])
def test_a_foreign_cursor_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        Cursor.parse(text)


def test_history_is_bounded_in_turns_and_characters_and_begins_with_the_user() -> None:
    turns = [Turn("user" if number % 2 == 0 else "assistant", str(number)) for number in range(41)]
    kept = recent(turns)
    assert kept[0] == Turn("user", "22")
    assert kept[-1] == Turn("user", "40")
    assert recent([Turn("user", "x" * 30_000), Turn("assistant", "y" * 20_000), Turn("user", "z")]) == [
        Turn("user", "z")
    ]


def agent(number: int, at: float | None = None) -> Agent:
    time = float(number) if at is None else at
    return Agent(IDS[number], ALICE, f"agent {number}", "", "", time, time)


def write(kind: str, at: float, **payload: Any) -> Operation:
    return Operation(f"{kind} {at}", kind, f"agents:{ALICE}", ALICE, {"at": at, **payload})


def created(number: int) -> Operation:
    texts = {"name": f"agent {number}", "system_prompt": "", "model": ""}
    return write("agent.create", float(number), id=IDS[number], **texts)


def renamed(number: int, name: str, at: float) -> Operation:
    return write("agent.update", at, id=IDS[number], fields={"name": name})


def test_waiting_changes_show_in_order_and_what_shows_already_is_left_alone() -> None:
    waiting = [created(1), renamed(1, "second", 2.0), renamed(1, "third", 3.0)]
    assert agent_after(None, waiting, IDS[1]) == replace(agent(1), name="third", updated_at=3.0)
    applied = replace(agent(1), name="changed directly since", updated_at=4.0)
    assert agent_after(applied, waiting, IDS[1]) == applied
    assert agent_after(agent(1), [*waiting, write("agent.delete", 5.0, id=IDS[1])], IDS[1]) is None
    assert agent_after(agent(2), waiting, IDS[2]) == agent(2)


def pages(items: list[Agent], waiting: list[Operation], size: int) -> list[list[str]]:
    """A whole list, page by page, as somebody reads it while the writes wait."""
    found, cursor = [], ""
    while True:
        after = Cursor.parse(cursor)
        rest = [one for one in items if after is None or (round(one.created_at * 1e6), one.id) < _place(after)]
        page = page_of(rest, size)
        page = overlaid(page, agents_changed(page.items, waiting), size, after)
        found.append([one.name for one in page.items])
        if not (cursor := page.next_cursor):
            return found


def _place(cursor: Cursor) -> tuple[int, str]:
    return cursor.created_us, cursor.id


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_pages_with_waiting_writes_show_each_item_once_in_its_place(size: int) -> None:
    items = [agent(number) for number in (7, 5, 3, 1)]
    waiting = [
        created(8),
        created(6),
        renamed(5, "five", 9.0),
        created(4),
        write("agent.delete", 9.0, id=IDS[3]),
        write("agent.delete", 9.0, id=IDS[4]),
        created(7),  # applied since
    ]
    read = [name for page in pages(items, waiting, size) for name in page]
    assert read == ["agent 8", "agent 7", "agent 6", "five", "agent 1"]


def test_a_page_that_nothing_changes_is_the_same_page() -> None:
    page = page_of([agent(2), agent(1)], 1)
    assert overlaid(page, agents_changed(page.items, [renamed(9, "x", 10.0)]), 1, None) is page
    assert overlaid(Page([]), agents_changed([], [created(1)]), 5, None).items == [agent(1)]


def said(at: float, text: str) -> Operation:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": f"re: {text}"}]
    return write("conversation.append", at, agent=IDS[0], id=IDS[1], turns=turns)


def test_what_was_said_and_waits_is_in_the_conversation_once_and_in_order() -> None:
    waiting = [said(3.0, "three"), said(2.0, "two")]
    found = conversation_after(None, waiting, IDS[0], IDS[1])
    assert found is not None
    assert [turn.content for turn in found.turns] == ["two", "re: two", "three", "re: three"]
    assert conversation_after(found, waiting, IDS[0], IDS[1]) == found
    stored = Conversation(IDS[1], 1.0, (Turn("user", "one", 1.0), Turn("assistant", "re: one", 1.0)))
    more = conversation_after(stored, waiting, IDS[0], IDS[1])
    assert more is not None
    assert ([turn.content for turn in more.turns][::2], more.updated_at) == (["one", "two", "three"], 3.0)
    deleted = [*waiting, write("conversation.delete", 4.0, agent=IDS[0], id=IDS[1])]
    assert conversation_after(stored, deleted, IDS[0], IDS[1]) is None
    assert conversation_after(stored, waiting, IDS[2], IDS[1]) == stored


def test_no_more_turns_are_shown_than_the_database_will_keep() -> None:
    found = conversation_after(None, [said(float(number), f"{number}") for number in range(12)], IDS[0], IDS[1])
    assert found is not None
    assert [turn.content for turn in found.turns][::2] == [f"{number}" for number in range(2, 12)]
