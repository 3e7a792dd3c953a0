"""Copies of the beginnings of lists: of each as much as a page can have, for any size of page."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ai_core.model import PAGE_LIMIT, Cursor, Page, page_of
from resilience import MISSING, Clock, Missing, Rung, Served
from service_kit.copies import MEMORY_CACHE, REDIS_CACHE, Copy, CopyStore


class Identified(Protocol):
    """What lists are made of."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Identified)
R = TypeVar("R")


class Beginning(NamedTuple, Generic[T]):
    """The first items of a list as of a moment (unix seconds); ``complete``: there are no others."""

    items: list[T]
    complete: bool
    as_of: float


class ListCopies(Generic[T]):
    """``read`` makes an item of a copy's plain data, or None; ``place`` says where it is in its list, newest first."""

    def __init__(
        self,
        store: CopyStore,
        clock: Clock,
        read: Callable[[Any], T | None],
        place: Callable[[Any], Cursor] = Cursor.after,
    ) -> None:
        self._store = store
        self._clock = clock
        self._read = read
        self._place = place

    def keep(self, key: str, items: Sequence[T], *, complete: bool, since: float, after: Cursor | None = None) -> None:
        """Takes note of a page as it was ``since`` a moment (unix seconds): a later change stays.

        ``after``: where the page begins; None: it is the first one. ``complete``: nothing comes behind it.
        """
        old = self._beginning(self._store.local(key))
        if after is not None:
            self._go_on(key, old, items, complete, since, after)
            return
        shorter = old is not None and len(old.items) > len(items) and old.items[: len(items)] == list(items)
        if complete or not shorter:
            self._write(key, Beginning(list(items), complete, self._clock.time()), since)

    def _go_on(
        self, key: str, old: Beginning[T] | None, items: Sequence[T], complete: bool, since: float, after: Cursor
    ) -> None:
        """A page that follows on what is known makes that longer."""
        before = [item for item in old.items if self._order(item) >= _order(after)] if old else []
        if old is None or old.complete or not before or self._place(before[-1]) != after:
            return
        self._write(key, Beginning([*before, *items], complete, old.as_of), since)

    async def change(self, key: str, made: Sequence[T], gone: Collection[str]) -> None:
        """Brings items that were made or changed, or are gone (by id), into the copy; the rest of it stays as old."""
        now = self._clock.time()
        old = await self._newest(key) or Beginning([], complete=False, as_of=now)
        known = {item.id: item for item in old.items if item.id not in gone} | {item.id: item for item in made}
        if known or old.items:
            self._write(key, old._replace(items=list(known.values())), now)

    async def ids(self, key: str) -> list[str]:
        """Of the items in the copy."""
        old = await self._newest(key)
        return [item.id for item in old.items] if old else []

    async def drop(self, key: str) -> None:
        """Forgets the copy."""
        await self._store.forget(key)

    def rungs(self, key: str, size: int, after: Cursor | None) -> tuple[Rung[Page[T]], Rung[Page[T]]]:
        """The steps of a ladder that read a page, as far as the copy goes."""

        def page(copy: Copy | None) -> Served[Page[T]] | Missing:
            found = self._beginning(copy)
            if found is None:
                return MISSING
            items = [item for item in found.items if after is None or self._order(item) < _order(after)]
            if after is not None and not items and not found.complete:
                return MISSING
            return Served(page_of(items, size, self._place, complete=found.complete), as_of=found.as_of)

        return rungs(self._store, key, page)

    def _write(self, key: str, found: Beginning[T], version: float) -> None:
        items = sorted(found.items, key=self._order, reverse=True)
        complete = found.complete and len(items) <= PAGE_LIMIT
        kept = {"items": items[:PAGE_LIMIT], "complete": complete, "as_of": found.as_of}
        self._store.keep(key, kept, version_of(version))

    async def _newest(self, key: str) -> Beginning[T] | None:
        copies = [copy for copy in (await self._store.soon(key), self._store.local(key)) if copy]
        return self._beginning(max(copies, key=lambda copy: copy.version)) if copies else None

    def _beginning(self, copy: Copy | None) -> Beginning[T] | None:
        """None for what another version of the service wrote and this one cannot read."""
        fields = copy.value if copy and isinstance(copy.value, Mapping) else {}
        items, as_of = fields.get("items"), fields.get("as_of")
        if not isinstance(items, list) or not isinstance(as_of, int | float):
            return None
        read = [self._read(item) for item in items]
        return Beginning([item for item in read if item is not None], fields.get("complete") is True, float(as_of))

    def _order(self, item: T) -> tuple[int, str]:
        return _order(self._place(item))


def rungs(
    store: CopyStore,
    key: str,
    read: Callable[[Copy | None], Served[R] | Missing],
    answers: tuple[type[Exception], ...] = (),
) -> tuple[Rung[R], Rung[R]]:
    """The two steps that read a copy, in Redis and in memory; ``answers``: what ``read`` raises as an answer."""

    async def from_redis(_: BaseException) -> Served[R] | Missing:
        return read(await store.shared(key))

    async def from_memory(_: BaseException) -> Served[R] | Missing:
        return read(store.local(key))

    return Rung(REDIS_CACHE, from_redis, answers), Rung(MEMORY_CACHE, from_memory, answers)


def version_of(seconds: float) -> int:
    """A moment as the version of a copy."""
    return round(seconds * 1_000_000)


def _order(place: Cursor) -> tuple[int, str]:
    return place.created_us, place.id
