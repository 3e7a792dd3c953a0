"""The soak: a seeded nemesis breaks parts of the platform for minutes on end, and the history is held against the
matrix. ``python -m tests.soak --minutes 10 --seed 1``."""
