"""Which situations were reached: a simulation that never gets into trouble proves nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from tests.simulation.scenario import FAULTS

SITUATIONS = (
    # answers
    "written directly",
    "accepted by the queue",
    "told as applied by the queue",
    "told as dead",
    "refused by the database",
    "refused: nothing accepted",
    "refused: queue full",
    "refused: outcome unknown",
    "outcome unknown: took effect",
    "outcome unknown: no effect",
    "no answer",
    "repeated though accepted",
    "request cancelled",
    # on the way
    "stalled on the network",
    "slow clean-up",
    "database: connection lost before",
    "database: connection lost after",
    "database: carried out after its caller gave up",
    "store: connection lost before",
    "store: connection lost after",
    "store: carried out after its caller gave up",
    # at the database
    "direct write met its fence",
    "direct write while the store could not be asked",
    "overtaken by an unordered write",
    "batch refused for one bad value",
    "commit of a drain, answer lost",
    "commit of a drain that had given up",
    "drain met a fence: applied",
    "drain met a fence: dead",
    "burial met a fence: applied",
    "drainers contended",
    "idle transaction ended by the server",
    "killed while draining",
    "killed while busy",
    # at the store
    "append refused as late",
    "queue full",
    "smaller batch after a timeout",
    "buried: expired",
    "buried: failed",
    "buried: malformed",
    "dead letter replayed",
    "replayed operation applied",
    "dead letters cleared",
    "circuit of the database open",
    "circuit of the database closed",
    "circuit of the store open",
    "circuit of the store closed",
    *FAULTS,
)
"""Each of these is reached by a few hundred seeds, or the test fails."""

RARE = (
    "direct write waited for a drain",
    "database: answer lost in a crash",
    "store: answer lost in a crash",
    "replay refused: queue full",
)
"""These by a few thousand."""


def missing(counts: Counter[str], wanted: Iterable[str] = SITUATIONS) -> list[str]:
    """Situations that were not reached."""
    return [situation for situation in wanted if not counts[situation]]


def table(counts: Counter[str]) -> Iterator[str]:
    """How often each was reached, those that never were included."""
    for situation in sorted({*SITUATIONS, *RARE, *counts}):
        yield f"{counts[situation]:>10}  {situation}"
