"""How things are written in a timeline: short, and without addresses in memory, which differ from run to run."""

from __future__ import annotations

from typing import Any

from resilience.queue import Entry, Operation, OperationRecord, Result


def name_of(callback: Any) -> str:
    """A function, a bound method, a partial or a coroutine."""
    inner = getattr(callback, "func", callback)
    return str(getattr(inner, "__qualname__", type(inner).__name__))


def brief(value: Any) -> str:
    """A result."""
    match value:
        case Entry(operation=Operation() as operation):
            return operation.fence
        case Entry():
            return "garbage"
        case Operation():
            return value.fence
        case Result(operation=operation, fate=fate):
            return f"{operation.fence} {fate} {value.error}".rstrip()
        case OperationRecord():
            return f"{value.status} {value.error}".rstrip()
        case float():
            return f"{value:.4f}"
        case list() | tuple():
            return f"[{', '.join(map(brief, value))}]"
        case Exception():
            return repr(value)
        case _:
            return str(value)
