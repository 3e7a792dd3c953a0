"""What the tour's user does, and how often: light load, and one kind of request for everything the rows speak of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

READ_EVERY = 0.05  # s
WRITE_EVERY = 0.2  # s
OTHER_EVERY = 0.25  # s

Content = Mapping[str, Any] | None


@dataclass(frozen=True)
class Habit:
    """One kind of request. ``path`` may name ``{user}``, ``{room}`` and ``{agent}``; ``body`` makes what is sent from
    the request's number."""

    method: str
    path: str
    every: float = OTHER_EVERY
    body: Callable[[int], Content] = lambda _: None


HABITS: Mapping[str, Habit] = {
    "read": Habit("GET", "/users/{user}", READ_EVERY),
    "write": Habit("PATCH", "/users/{user}", WRITE_EVERY, lambda number: {"display_name": f"name {number}"}),
    "agent": Habit("GET", "/agents/{agent}", 2 * READ_EVERY),
    "rename": Habit("PATCH", "/agents/{agent}", WRITE_EVERY, lambda number: {"name": f"name {number}"}),
    "chat": Habit("POST", "/agents/{agent}/chat", body=lambda number: {"message": f"Question {number}"}),
    "translate": Habit("POST", "/translate", body=lambda number: {"text": f"Text {number}", "target_language": "fr"}),
    "note": Habit("POST", "/memories", 2 * OTHER_EVERY, lambda number: {"text": f"Note {number}"}),
    "find": Habit("GET", "/memories/search?q=spare+key", 2 * READ_EVERY),
    "voice": Habit("POST", "/speech", body=lambda number: {"text": f"Sentence {number}"}),
    "room": Habit("GET", "/rooms/{room}", 2 * READ_EVERY),
    "ticket": Habit("POST", "/rooms/{room}/token"),
}
