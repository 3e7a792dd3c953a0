"""What a seed decides in advance: sizes, settings, and which faults there are.

Each seed leaves out most of what could happen, and does the rest often ("swarm testing", Groce et al., ISSTA 2012): a
run that always has every fault at once rarely reaches the state in which one of them alone does harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from resilience.queue import DrainSettings

FAULTS = (
    "database freezes",
    "database down",
    "database crashes",
    "database slow",
    "database flaky",
    "database stalls",
    "database sick",
    "store freezes",
    "store down",
    "store crashes",
    "store slow",
    "store flaky",
    "store stalls",
    "store sick",
    "both freeze",
    "both stall",
    "instance killed",
    "instance paused",
    "instance stopped",
    "garbage",
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Times in seconds of virtual time."""

    instances: int
    clients: int
    writes: int
    entities: int
    seconds: float
    faults: tuple[str, ...]
    fault_pause: float
    limit: int
    drain: DrainSettings
    settle_wait: float
    database_failures: int
    store_failures: int
    pool: int
    store_pool: int
    waiting: int
    """Calls that may wait for a place in a pool."""
    ambush: float
    """Share of drains to which something happens just then."""
    operator_pause: float
    """Seconds between an operator's acts; 0: there is none."""
    bad: float
    """Share of writes that the database refuses whatever happens."""
    creates: float
    """Share of writes that create or delete, mostly in vain."""
    patience: float
    """A client that waits no longer repeats its write while the first attempt still goes on."""
    cancels: float
    """Share of requests whose client goes away."""
    slow_clean_up: float
    shuffle: bool

    @classmethod
    def drawn(cls, random: Random) -> Scenario:
        """One of very many."""
        pick = random.choice
        faults = random.sample(FAULTS, random.randint(1, 6))
        drain = DrainSettings(
            batch_size=pick((1, 2, 3, 8, 2000)),
            ttl=pick((3600.0, 3600.0, 2.0, 6.0)),
            interval=pick((5.0, 30.0)),
            retry_waits=pick(((0.05, 0.1, 0.2), (0.05, 0.1, 0.2), (0.0, 0.0, 0.0), (), (0.5, 1.0))),
        )
        return cls(
            instances=pick((1, 2, 2, 3)),
            clients=random.randint(2, 8),
            writes=random.randint(4, 16),
            entities=random.randint(1, 4),
            seconds=random.uniform(5, 20),
            faults=tuple(faults),
            fault_pause=random.uniform(0.1, 1.5),
            limit=pick((1000, 1000, 1000, 6, 3)),
            drain=drain,
            settle_wait=pick((1.0, 0.2)),
            database_failures=pick((2, 5)),
            store_failures=pick((2, 3)),
            pool=pick((8, 8, 2)),
            store_pool=pick((50, 50, 3)),
            waiting=pick((200, 200, 3)),
            ambush=pick((0.0, 0.2, 0.6)),
            operator_pause=pick((0.0, 0.5, 2.0)),
            bad=pick((0.0, 0.0, 0.1)),
            creates=pick((0.0, 0.1, 0.4)),
            patience=pick((3.0, 3.0, 0.4)),
            cancels=pick((0.0, 0.0, 0.1)),
            slow_clean_up=pick((0.0, 0.5)),
            shuffle=pick((False, True)),
        )
