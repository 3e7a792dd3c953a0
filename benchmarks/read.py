"""Reading an account: the real Dashboard against bare endpoints, and against itself without its database.

The Dashboard checks the token and the session, bounds the call, watches the circuit, keeps copies, counts and logs. The
bare endpoints do the query and nothing else.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import BenchmarkError, Figure, Options, Report, Target, turns
from benchmarks.platform import QUIET, Person, circuit, dashboard, people, platform
from benchmarks.slices import Load, Slice, Subject, details, get, load_generator
from devstack import Stack
from devstack.components.base import http_ok
from devstack.process import Command, Process

ASYNCPG, CORE = "FastAPI + asyncpg", "FastAPI + SQLAlchemy Core"
START_LIMIT = 20.0  # s
ROOT = Path(__file__).parent.parent

Rounds = list[dict[str, Slice]]


async def read(options: Options) -> Report:
    """GET of an account: the Dashboard against bare FastAPI endpoints with the same query."""
    rounds, seconds = (3, 0.5) if options.quick else (12, 1.0)
    async with platform() as stack, load_generator() as load:
        readers = await people(stack)
        subjects = [dashboard(stack, "dashboard", readers), dashboard(stack, QUIET, readers)]
        subjects.append(await _bare(stack, ASYNCPG, "with_asyncpg", readers))
        subjects.append(await _bare(stack, CORE, "with_sqlalchemy", readers))
        found = await _in_turn(load, subjects, rounds, seconds, options)
    return Report(
        [
            _ratio(found, "dashboard", CORE, Target("at least", 1.0)),
            _ratio(found, "dashboard", ASYNCPG, Target("at least", 0.5)),
            _ratio(found, QUIET, CORE, label="normal read, ACCESS_LOG=errors"),
            _ratio(found, QUIET, ASYNCPG, label="normal read, ACCESS_LOG=errors"),
        ],
        [details(subject.name, (one[subject.name] for one in found)) for subject in subjects],
    )


async def degraded(options: Options) -> Report:
    """The same read with PostgreSQL killed and the circuit open, against the Dashboard's own normal read."""
    rounds, seconds = (2, 0.5) if options.quick else (8, 1.0)
    found: Rounds = []
    async with platform() as stack, load_generator() as load:
        readers = await people(stack)
        subject = dashboard(stack, "dashboard", readers)
        await load.slice(subject, seconds)
        for number in range(rounds):
            options.say(f"round {number + 1} of {rounds}: kill, read, heal, read")
            found.append(await _one_outage(stack, load, subject, readers[0], seconds))
    return Report(
        [_ratio(found, "degraded", "normal", Target("at least", 1.0), label="degraded read", over="own normal read")],
        [details(f"dashboard, {name}", (one[name] for one in found)) for name in ("normal", "degraded")],
    )


async def _one_outage(stack: Stack, load: Load, subject: Subject, person: Person, seconds: float) -> dict[str, Slice]:
    await stack.kill("postgres")
    await circuit(stack, "open", person)
    without = await load.slice(subject, seconds)
    if without.degraded != without.requests:
        raise BenchmarkError(f"{without.requests - without.degraded} answers were not marked as degraded")
    await stack.heal("postgres")
    await circuit(stack, "closed", person)
    normal = await load.slice(subject, seconds)
    if normal.degraded:
        raise BenchmarkError(f"{normal.degraded} answers were degraded with the database there")
    return {"degraded": without, "normal": normal}


async def _in_turn(
    load: Load, subjects: Sequence[Subject], rounds: int, seconds: float, options: Options
) -> list[dict[str, Slice]]:
    by_name = {subject.name: subject for subject in subjects}
    for subject in subjects:
        await load.slice(subject, seconds)  # warms up, and is forgotten
    found: Rounds = []
    for number in range(rounds):
        options.say(f"round {number + 1} of {rounds}")
        order = turns(list(by_name), number)
        found.append({name: await load.slice(by_name[name], seconds) for name in order})
    return found


def _ratio(
    rounds: Rounds, one: str, other: str, target: Target | None = None, *, label: str = "normal read", over: str = ""
) -> Figure:
    return Figure(f"{label} / {over or other}", [each[one].rate / each[other].rate for each in rounds], "×", target)


async def _bare(stack: Stack, name: str, factory: str, readers: Sequence[Person]) -> Subject:
    """A bare endpoint in a uvicorn process that ends with the stack.

    Raises:
        BenchmarkError: it does not start.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    command = Command(
        [sys.executable, "-m", "uvicorn", "--factory", f"benchmarks.endpoints:{factory}", *options],
        env={"DATABASE_URL": stack.database_url("dashboard")},
        cwd=ROOT,
    )
    process = Process.spawn(name, command, log=stack.state.log(factory), record=stack.state.record(factory))
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + START_LIMIT
    while not await http_ok(url + readers[0].path):
        if not process.alive or time.monotonic() > end:
            raise BenchmarkError(f"{name} does not start:\n{stack.log_tail(factory)}")
    return Subject(name, url, process.pid, [get(person.path) for person in readers])
