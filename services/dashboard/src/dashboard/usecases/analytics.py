"""What a user did, in numbers; while nothing can tell, safe defaults instead of an error (row D1)."""

from __future__ import annotations

from dashboard.degradation import SAFE_DEFAULTS
from dashboard.model import Analytics, NotAllowed
from dashboard.ports import Activity, Kept
from dashboard.usecases.reads import Reads
from resilience import Rung, Served


class UserAnalytics:
    """From the database, else the standby, else a copy, else nothing but the labels."""

    def __init__(self, reads: Reads[Activity], copies: Kept[Analytics]) -> None:
        self._reads = reads
        self._copies = copies

    async def read(self, user_id: str, caller: str | None) -> Served[Analytics]:
        """``caller`` is None for an administrator. Raises NotAllowed."""
        if caller is not None and caller != user_id:
            raise NotAllowed
        return await self._reads.serve(
            lambda activity: self._fresh(activity, user_id),
            *self._copies.rungs(user_id),
            Rung(SAFE_DEFAULTS, lambda _: Analytics(user_id)),
            from_standby=lambda activity: activity.analytics(user_id),
        )

    async def _fresh(self, activity: Activity, user_id: str) -> Analytics:
        found = await activity.analytics(user_id)
        self._copies.keep(user_id, found)
        return found
