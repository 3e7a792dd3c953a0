"""What the routes of row D3 (dashboard.ai_core) share: refused creations, and pages that may come from the queue."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from dashboard.degradation import AI_CORE, REDIS_QUEUE
from dashboard.inbound.http.doors import listed
from dashboard.model import Page
from resilience import Served, WriteRefused
from service_kit.refusals import write_refused

T = TypeVar("T")


async def writing(work: Awaitable[Served[T]]) -> Served[T]:
    """The creation's outcome. Raises ServiceError when neither AI Core nor the queue has taken it."""
    try:
        return await work
    except WriteRefused as error:
        raise write_refused(error, AI_CORE, lead=AI_CORE.user_text) from error


def page_body(served: Served[Page[T]], items: list[dict[str, Any]]) -> Mapping[str, Any]:
    """The body of a list; one that only the queue could serve says that there is more."""
    body = listed(items, served.value.next_cursor)
    only_queued = any(one.fallback == REDIS_QUEUE for one in served.degradations)
    return {**body, "incomplete": True} if only_queued else body
