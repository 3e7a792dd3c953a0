"""Which situations were reached: a simulation that never gets into trouble proves nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

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
    "database: answer lost in a crash",
    "database: carried out after its caller gave up",
    "store: connection lost before",
    "store: connection lost after",
    "store: answer lost in a crash",
    "store: carried out after its caller gave up",
    # at the database
    "direct write met its fence",
    "direct write waited for a drain",
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
    "replay refused: queue full",
    "dead letters cleared",
    "circuit of the database open",
    "circuit of the database closed",
    "circuit of the store open",
    "circuit of the store closed",
    *FAULTS,
)
"""Each of these is reached by a few hundred seeds, or the test fails."""


def missing(counts: Counter[str]) -> list[str]:
    """Situations that were not reached."""
    return [situation for situation in SITUATIONS if not counts[situation]]


def table(counts: Counter[str]) -> Iterator[str]:
    """How often each was reached, those that never were included."""
    for situation in sorted({*SITUATIONS, *counts}):
        yield f"{counts[situation]:>10}  {situation}"
