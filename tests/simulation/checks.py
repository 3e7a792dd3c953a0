"""What must hold when all is quiet again: pure functions of the history and of what store and database hold.

Order is the order of acceptance where there is one: of two writes of an entity, one that was accepted before the other
was begun must take effect before it. Writes that overlap in time may come in either order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

from tests.simulation.database import Database, Effect
from tests.simulation.history import History, Write
from tests.simulation.store_server import StoreServer


def check(history: History, store: StoreServer, database: Database) -> Iterator[str]:
    """Everything at once."""
    yield from nothing_lost(history, store)
    yield from nothing_unasked(history)
    yield from fenced(history, database)
    yield from in_order(history)
    yield from rows(history, database)
    yield from dead_letters(history, store)
    yield from indexes(store)


def nothing_lost(history: History, store: StoreServer) -> Iterator[str]:
    """What was accepted took effect once, or is a dead letter with a reason, or was one that an operator removed."""
    effects: dict[str, int] = {}
    for effect in history.effects:
        effects[effect.operation.id] = effects.get(effect.operation.id, 0) + 1
    letters = {letter.operation.id for letter in store.dead.values() if letter.operation and letter.reason}
    for operation_id, write in history.writes.items():
        count = effects.get(operation_id, 0)
        if count > 1:
            yield f"{operation_id} took effect {count} times"
        if write.acknowledged < inf and not count and operation_id not in letters | history.discards:
            yield f"{operation_id} was accepted and is lost"
        if count and operation_id in letters:
            yield f"{operation_id} took effect and is in the dead letters"


def nothing_unasked(history: History) -> Iterator[str]:
    """What was refused, and nothing else said of it, has not been accepted by anybody."""
    effects = {effect.operation.id for effect in history.effects}
    for operation_id, write in history.writes.items():
        if write.in_doubt and write.acknowledged == inf:
            history.count(f"outcome unknown: {'took effect' if operation_id in effects else 'no effect'}")
        if write.refused and not write.unknown and not write.dead and write.acknowledged == inf:
            if operation_id in effects:
                yield f"{operation_id} was refused and took effect"
            elif write.operation.fence in history.queued:
                yield f"{operation_id} was refused and queued"


def fenced(history: History, database: Database) -> Iterator[str]:
    """The effects are exactly the fenced operations."""
    effects = {effect.operation.fence for effect in history.effects}
    applied = {fence for fence, error in database.fences.items() if error is None}
    yield from (f"{fence} took effect without a fence" for fence in sorted(effects - applied))
    yield from (f"{fence} is fenced and has had no effect" for fence in sorted(applied - effects))


def in_order(history: History) -> Iterator[str]:
    """Per entity, effects in the order of acceptance."""
    for entity, effects in by_entity(history.effects).items():
        order = logical(effects)
        times = [_interval(history, effect) for effect in order]
        for at, (_, accepted) in enumerate(times):
            for before in range(at):
                if times[before][0] > accepted and not _excused(history, order[before : at + 1]):
                    names = order[at].operation.fence, order[before].operation.fence
                    yield f"{entity}: {names[0]} took effect after {names[1]}, which began after it was accepted"


def _excused(history: History, stretch: Sequence[Effect]) -> bool:
    """The last one of a stretch should have come before the first. Only writes made while the store could not be asked
    have no order to rely on (ADR 0001), and of those only two cases are left: the last effect was a statement that was
    on its way to the database before such a write, and woke up after it; or its client repeated it after it had been
    accepted, which is when it took effect."""
    last = stretch[-1]
    accepted = history.writes[last.operation.id].acknowledged
    if last.late and any(effect.unordered_at and effect.sent > accepted for effect in stretch[:-1]):
        history.excused("a statement woke up after an unordered write")
        return True
    if last.unordered_at and last.sent > accepted:
        history.excused("an accepted write was repeated as an unordered one")
        return True
    return False


def by_entity(effects: Sequence[Effect]) -> dict[str, list[Effect]]:
    """Each entity's effects, in the order in which they happened."""
    found: dict[str, list[Effect]] = {}
    for effect in effects:
        found.setdefault(effect.operation.entity, []).append(effect)
    return found


def logical(effects: Sequence[Effect]) -> list[Effect]:
    """As if each had happened when it counts: one that was overtaken, just before what has overtaken it (ADR 0001)."""
    order: list[Effect] = []
    for effect in effects:
        place = len(order)
        if effect.overtaken:
            accepted = effect.operation.accepted_at
            place = next((at for at, other in enumerate(order) if other.unordered_at >= accepted), place)
        order.insert(place, effect)
    return order


def _interval(history: History, effect: Effect) -> tuple[float, float]:
    write: Write | None = history.writes.get(effect.operation.id)
    if write is None:
        return 0.0, inf
    return (write.replayed, inf) if effect.operation.generation else (write.invoked, write.acknowledged)


def rows(history: History, database: Database) -> Iterator[str]:
    """A row shows its last effect, and counts them all."""
    effects = by_entity([effect for effect in history.effects if not effect.overtaken])
    for entity, row in database.rows.items():
        visible = effects.get(entity, [])
        last = visible[-1].operation.id if visible else ""
        if (row.value, row.revision) != (last, len(visible)):
            yield f"{entity} shows {row.value!r} and {row.revision} effects, not {last!r} and {len(visible)}"


def dead_letters(history: History, store: StoreServer) -> Iterator[str]:
    """Each has a reason and can be found again."""
    for position, letter in store.dead.items():
        key = letter.operation.id if letter.operation else letter.position
        if not letter.reason:
            yield f"dead letter {key} has no reason"
        if store.index.get(key) != f"dead:{position}":
            yield f"dead letter {key} cannot be found by its id"


def indexes(store: StoreServer) -> Iterator[str]:
    """What waits can be found by its id, and an empty queue leaves nothing behind but the way to its dead letters."""
    for position, (_, operation) in store.queue.items():
        if operation is not None and store.index.get(operation.id) != position:
            yield f"{operation.fence} waits and cannot be found by its id"
    if store.queue:
        return
    yield from (f"index left behind: {key} -> {at}" for key, at in store.index.items() if not at.startswith("dead:"))
    yield from (f"entity left behind: {entity} {at}" for entity, at in store.entities.items())
    yield from (f"attempts left behind: {key} {count}" for key, count in store.attempts.items())
    orphans = [key for key, at in store.index.items() if at.startswith("dead:") and at[5:] not in store.dead]
    yield from (f"index of a dead letter that is gone: {key}" for key in orphans)
