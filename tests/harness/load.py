"""Steady mixed load on the Dashboards: ``python -m tests.harness.load``, a process of its own.

Open loop: a request is begun every 1/rate seconds, however long earlier ones take, as real users would. Only writes of
one user wait for each other, so that there is an order of acceptance to check. Runs until its standard input closes
(so it also ends when the test that started it dies), lets the last requests finish, and leaves the history in a file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import uuid
from collections import deque
from pathlib import Path
from typing import TextIO

import aiohttp

from tests.harness.client import Account, Recorder
from tests.harness.history import Event, dumps
from tests.harness.routes import ROUTES

READY = "firing"
FLUSH_EVERY = 1.0  # s: whoever reads the history meanwhile sees all that ended before
_KEYED, _ASYNC = 0.2, 0.3


class Load:
    """The generator; ``out`` receives a line per request. ``kinds``: what it may use, in shares of the table."""

    def __init__(
        self, recorder: Recorder, accounts: list[Account], out: TextIO, seed: int, kinds: list[str] | None = None
    ) -> None:
        self._recorder = recorder
        self._accounts = accounts
        self._kinds = kinds or list(ROUTES)
        self._shares = [ROUTES[kind].share for kind in self._kinds]
        self._idle = list(accounts)
        self._operations: deque[tuple[Account, str]] = deque(maxlen=200)
        # A login is a fifth of a second of hashing on purpose: more than one at a time, on a machine of two cores,
        # would measure only that.
        self._hashing = asyncio.Lock()
        self._out = out
        self._random = random.Random(seed)
        self._run = uuid.uuid4().hex[:6]
        self._count = 0

    async def fire(self, rate: float, stop: asyncio.Event) -> None:
        """Begins ``rate`` requests per second until ``stop``, then waits for the last answers."""
        loop = asyncio.get_running_loop()
        due = flushed = loop.time()
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                group.create_task(self._one())
                if loop.time() - flushed > FLUSH_EVERY:
                    self._out.flush()
                    flushed = loop.time()
                due += 1 / rate
                await asyncio.sleep(max(0.0, due - loop.time()))

    async def _one(self) -> None:
        kind = self._random.choices(self._kinds, self._shares)[0]
        account, instance = self._random.choice(self._accounts), self._instance()
        if kind == "write" and self._idle:
            await self._write()
        elif kind == "operation" and self._operations:
            owner, operation_id = self._random.choice(self._operations)
            self._note(await self._recorder.operation(owner, instance, operation_id))
        elif kind == "login" and not self._hashing.locked():
            async with self._hashing:
                self._note(await self._recorder.login(account, instance))
        elif kind in ("write", "operation", "login"):
            self._note(await self._recorder.read(account, instance))
        else:
            self._note(await self._recorder.use(kind, account, instance, self._name(kind)))

    async def _write(self) -> None:
        """Some writes carry an idempotency key and are sent twice, the second time to any instance."""
        account = self._idle.pop(self._random.randrange(len(self._idle)))
        name = self._name("write")
        key = name if self._random.random() < _KEYED else ""
        for _ in range(2 if key else 1):
            wait = self._random.random() >= _ASYNC
            event = await self._recorder.write(account, self._instance(), name, key=key, wait=wait)
            self._note(event)
            if operation_id := event.body.get("operation_id"):
                self._operations.append((account, operation_id))
        self._idle.append(account)

    def _name(self, kind: str) -> str:
        """One that nothing else uses, for what is written; other requests need none."""
        if ROUTES[kind].body("") is None:
            return ""
        self._count += 1
        return f"{self._run} change {self._count}"

    def _instance(self) -> str:
        return self._random.choice(list(self._recorder.targets))

    def _note(self, event: Event) -> None:
        self._out.write(dumps(event) + "\n")


async def _closed(stream: TextIO, stop: asyncio.Event) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stream)
    await reader.read()
    stop.set()


async def fire(
    targets: dict[str, str], accounts: list[Account], out: TextIO, rate: float, seed: int, kinds: list[str]
) -> None:
    """Fires until standard input closes."""
    stop = asyncio.Event()
    watching = asyncio.create_task(_closed(sys.stdin, stop))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        sys.stdout.write(READY + "\n")
        sys.stdout.flush()
        await Load(Recorder(session, targets), accounts, out, seed, kinds).fire(rate, stop)
    await watching


def main() -> None:
    """The command."""
    given = parse()
    accounts = [Account(**fields) for fields in json.loads(Path(given.accounts).read_text(encoding="utf-8"))]
    targets = dict(target.split("=", 1) for target in given.target)
    with Path(given.out).open("w", encoding="utf-8") as out:
        asyncio.run(fire(targets, accounts, out, given.rate, given.seed, given.kinds.split(",")))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", action="append", required=True, metavar="NAME=URL")
    parser.add_argument("--accounts", required=True, help="JSON file with a list of accounts")
    parser.add_argument("--out", required=True, help="history file")
    parser.add_argument("--rate", type=float, default=50.0, help="requests per second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default=",".join(ROUTES), help="kinds of requests to use, of tests.harness.routes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
