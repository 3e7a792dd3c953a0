"""Read-your-writes: what is read, with the writes in it that were accepted and are not applied yet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from ai_core.model import HISTORY_TURNS, Agent, Conversation, Cursor, Page, Turn, page_of
from resilience import Operation


class Identified(Protocol):
    """What lists are made of."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Identified)


def agent_made_by(operation: Operation) -> Agent:
    """The agent that a creation makes."""
    given = operation.payload
    texts = given["name"], given["system_prompt"], given["model"]
    return Agent(given["id"], operation.owner, *texts, given["at"], given["at"])


def agent_after(agent: Agent | None, waiting: Sequence[Operation], agent_id: str) -> Agent | None:
    """The agent after the writes that wait, in order; None when there is none. What it shows already is left alone."""
    for operation in waiting:
        given = operation.payload
        if given.get("id") != agent_id:
            continue
        match operation.kind:
            case "agent.create":
                agent = agent or agent_made_by(operation)
            case "agent.update" if agent is not None and agent.updated_at < given["at"]:
                agent = replace(agent, **given["fields"], updated_at=given["at"])
            case "agent.delete":
                agent = None
    return agent


def agents_changed(items: Sequence[Agent], waiting: Sequence[Operation]) -> dict[str, Agent | None]:
    """What the waiting writes make of these agents, and which they add, by id; None: deleted."""
    known = {item.id: item for item in items}
    named = {one.payload["id"] for one in waiting if one.kind.startswith("agent.")}
    after = {agent_id: agent_after(known.get(agent_id), waiting, agent_id) for agent_id in named}
    return {agent_id: agent for agent_id, agent in after.items() if agent != known.get(agent_id)}


def conversation_after(
    conversation: Conversation | None, waiting: Sequence[Operation], agent_id: str, conversation_id: str
) -> Conversation | None:
    """The conversation with what was said in it and waits; None when there is none."""
    for operation in waiting:
        given = operation.payload
        if (given.get("agent"), given.get("id")) != (agent_id, conversation_id):
            continue
        match operation.kind:
            case "conversation.append" if conversation is None or not _has(conversation, given["at"]):
                conversation = _went_on(conversation, operation)
            case "conversation.delete":
                conversation = None
    return conversation


def _has(conversation: Conversation, at: float) -> bool:
    return any(turn.at == at for turn in conversation.turns)


def _went_on(conversation: Conversation | None, operation: Operation) -> Conversation:
    given, at = operation.payload, operation.payload["at"]
    said = [Turn(turn["role"], turn["content"], at) for turn in given["turns"]]
    before = conversation or Conversation(given["id"], at)
    turns = sorted((*before.turns, *said), key=lambda turn: turn.at)[-HISTORY_TURNS:]  # as the database will keep it
    return replace(before, turns=tuple(turns), updated_at=max(before.updated_at, at))


def conversations_changed(
    items: Sequence[Conversation], waiting: Sequence[Operation], agent_id: str
) -> dict[str, Conversation | None]:
    """What the waiting writes make of this list, by id; None: deleted."""
    changes: dict[str, Conversation | None] = {}
    known = {item.id: item for item in items}
    for operation in waiting:
        given = operation.payload
        if given.get("agent") != agent_id:
            continue
        before = changes.get(given["id"], known.get(given["id"]))
        if operation.kind == "conversation.delete":
            changes[given["id"]] = None
        elif before is None or before.updated_at < given["at"]:
            changes[given["id"]] = Conversation(given["id"], given["at"])
    return {one: conversation for one, conversation in changes.items() if conversation or one in known}


def overlaid(
    page: Page[T],
    changes: Mapping[str, T | None],
    size: int,
    after: Cursor | None,
    place: Callable[[Any], Cursor] = Cursor.after,
) -> Page[T]:
    """The page with the changes in it: an item is where its place is, one that is deleted (None) is gone."""
    if not changes:
        return page
    end = Cursor.parse(page.next_cursor)
    kept = [item for item in page.items if item.id not in changes]
    new = [item for item in changes.values() if item is not None and _between(place(item), after, end)]
    items = sorted((*kept, *new), key=lambda item: _order(place(item)), reverse=True)
    if len(items) > size:
        return page_of(items, size, place)
    return Page(items, page.next_cursor)


def _between(place: Cursor, after: Cursor | None, end: Cursor | None) -> bool:
    if after is not None and _order(place) >= _order(after):
        return False
    return end is None or _order(place) >= _order(end)


def _order(place: Cursor) -> tuple[int, str]:
    return place.created_us, place.id
