"""What is going to be broken, when and how: a pure function of a seed, so that a bad run can be repeated.

Faults come in episodes. In an episode one component is broken, or two that overlap; every fault is healed; the next
episode begins when the platform has recovered, after a short pause.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

KINDS = ("kill", "freeze", "delay", "cut")
TWO = 0.4  # of the episodes
LASTS = (1.0, 6.0)  # s; a circuit opens within about three
PAUSE = (0.3, 1.5)  # s between episodes


@dataclass(frozen=True, slots=True)
class Fault:
    """One component, broken ``after`` s from the episode's beginning, for ``lasts`` s."""

    component: str
    kind: str
    after: float
    lasts: float


@dataclass(frozen=True, slots=True)
class Episode:
    """One fault or two, and the quiet before them (s)."""

    pause: float
    faults: tuple[Fault, ...]


def episodes(seed: int, components: Sequence[str]) -> Iterator[Episode]:
    """Without end. The same seed and components give the same episodes."""
    chance = random.Random(seed)
    while True:
        chosen = chance.sample(list(components), 2 if chance.random() < TWO else 1)
        first = Fault(chosen[0], chance.choice(KINDS), 0.0, _seconds(chance, LASTS))
        more = [
            Fault(name, chance.choice(KINDS), first.lasts * chance.random(), _seconds(chance, LASTS))
            for name in chosen[1:]
        ]
        yield Episode(_seconds(chance, PAUSE), (first, *more))


def _seconds(chance: random.Random, limits: tuple[float, float]) -> float:
    return round(chance.uniform(*limits), 2)
