"""What a test may change for the whole process: the source of randomness, and whether back-off really waits.

Read by the mechanisms, changed only by `resilience.testing`.
"""

from random import Random
from typing import Final

RANDOM: Final = Random()  # noqa: S311 - spreads load, protects nothing
"""Jitter and sampling use it unless they are given a `Random` of their own; `random.Random` is safe between threads."""


class Testing:
    """Whether the process is under test. `attempts` caps every retry; `backoff` False skips the waits between them."""

    __slots__ = ("attempts", "backoff")

    def __init__(self) -> None:
        self.attempts: int | None = None
        self.backoff = True


TESTING: Final = Testing()
