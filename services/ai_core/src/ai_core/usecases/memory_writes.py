"""What a write of memories says, and what lists show of those that wait (row A1, ai_core.postgres)."""

import base64
import binascii
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from ai_core.model import Memory
from ai_core.ports import Vectors
from resilience import Operation

CREATE = "memory.create"
DELETE = "memory.delete"


def entity_of(owner: str) -> str:
    """The unit of ordering: one owner's memories."""
    return f"memories:{owner}"


def creation(memory: Memory, key: str, vectors: Vectors | None) -> dict[str, Any]:
    """The payload of a creation: with its vector, where there is one, which need not be made again then."""
    given: dict[str, Any] = {"id": memory.id, "text": memory.text, "tags": list(memory.tags), "key": key}
    if vectors is not None:
        numbers = base64.b64encode(array("f", vectors.values[0]).tobytes()).decode()
        given["vector"] = {"model": vectors.model, "numbers": numbers}
    return given


def memory_made_by(operation: Operation) -> Memory:
    """The memory that a creation makes, without a vector."""
    given = operation.payload
    return Memory(given["id"], operation.owner, given["text"], tuple(given["tags"]), "pending", given["at"])


def vectors_of(operation: Operation) -> Vectors | None:
    """The vector that a creation brings; None when there is none, or none that can be read."""
    given: Any = operation.payload.get("vector")
    try:
        numbers: array[float] = array("f", base64.b64decode(given["numbers"], validate=True))
        return Vectors([list(numbers)], given["model"], 0) if numbers else None
    except (TypeError, KeyError, ValueError, binascii.Error):
        return None


def memories_changed(items: Sequence[Memory], waiting: Sequence[Operation]) -> Mapping[str, Memory | None]:
    """What the waiting writes add to these memories, and (None) take from them, by id."""
    known = {item.id for item in items}
    changes: dict[str, Memory | None] = {}
    for operation in waiting:
        if operation.kind == CREATE and operation.payload["id"] not in known:
            changes[operation.payload["id"]] = memory_made_by(operation)
        elif operation.kind == DELETE:
            changes[operation.payload["id"]] = None
    return {one: memory for one, memory in changes.items() if memory is not None or one in known}
