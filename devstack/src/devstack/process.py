"""One component as an operating-system process: started, stopped, killed, frozen and thawed with all its descendants.

A process group is not enough: each PostgreSQL backend makes a session of its own. So faults act on the tree of
descendants. The root is stopped first, so that nothing new is forked while the rest is being dealt with.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from devstack import launch

POLL = 0.02  # s between looks at a process that is expected to change
LOG_BYTES = 8 * 2**20  # a component's log is rotated beyond this


@dataclass(frozen=True)
class Account:
    """The user a component runs as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Command:
    """What to run: argv with an absolute program, and the environment beyond the inherited one."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    account: Account | None = None
    cwd: Path | None = None


class Process:
    """A started child of this process. All methods are safe to call at any time after its death."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.started = time.monotonic()
        self.frozen = False
        self._popen = popen

    @classmethod
    def spawn(cls, name: str, command: Command, *, log: Path, record: Path) -> Process:
        """Starts ``command`` in its own session, output appended to ``log``. Must be called in a thread that lives as
        long as the child (the kernel's parent-death signal follows the thread)."""
        rotate(log)
        with log.open("ab") as out:
            popen = subprocess.Popen(  # noqa: S603  (our own components, no shell)
                launched(command, record),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **command.env},
                cwd=command.cwd,
                start_new_session=True,
            )
        return cls(name, popen)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """``None`` while it runs; negative: the signal that ended it."""
        return self._popen.poll()

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    async def wait(self, limit: float) -> int | None:
        """Its exit code, or ``None`` when it still runs after ``limit`` seconds."""
        end = time.monotonic() + limit
        while self.alive and time.monotonic() < end:  # noqa: ASYNC110  (portable: no other way to wait with a limit)
            await asyncio.sleep(POLL)
        return self.exit_code

    async def stop(self, sig: signal.Signals, limit: float) -> bool:
        """Asks with ``sig``; kills the tree after ``limit`` seconds. True when asking was enough."""
        if not self.alive:
            return True
        self.thaw()
        self._popen.send_signal(sig)
        if await self.wait(limit) is not None:
            return True
        await self.kill()
        return False

    async def kill(self, limit: float = 10.0) -> None:
        """SIGKILL for the whole tree; returns when all of it is gone.

        Raises:
            TimeoutError: something survived for ``limit`` seconds (a process in uninterruptible sleep).
        """
        victims = kill_tree(self.pid) if self.alive else []
        await self.wait(limit)
        await gone(victims, limit)

    def freeze(self) -> None:
        """SIGSTOP for the whole tree."""
        if self.alive:
            freeze_tree(self.pid)
            self.frozen = True

    def thaw(self) -> None:
        """SIGCONT for the whole tree."""
        self.frozen = False
        if self.alive:
            for process in tree(self.pid):
                send(process, signal.SIGCONT)


def launched(command: Command, record: Path) -> list[str]:
    """``command`` behind the launcher, which drops rights, ties it to our life and writes ``record``."""
    account = command.account or Account("", -1, -1)
    launcher = [sys.executable, "-I", "-S", launch.__file__, str(record), str(os.getpid())]
    return [*launcher, str(account.uid), str(account.gid), *command.argv]


async def run_once(command: Command, *, record: Path, given: str, limit: float) -> tuple[int, str]:
    """Runs ``command`` to its end with ``given`` as its input; returns its exit code and all it printed.

    Raises:
        TimeoutError: it still ran after ``limit`` seconds, and was killed.
    """
    process = await asyncio.create_subprocess_exec(
        *launched(command, record),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **command.env},
        cwd=command.cwd,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(limit):
            printed, _ = await process.communicate(given.encode())
    finally:
        if process.returncode is None:
            kill_tree(process.pid)
            await process.wait()
        record.unlink(missing_ok=True)  # noqa: ASYNC240  (a local file of a few bytes)
    return process.returncode or 0, printed.decode(errors="replace")


def rotate(log: Path) -> None:
    """Keeps one older generation of a log that has grown too large."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))


def truncate_grown(log: Path) -> None:
    """The same while a process is still appending to the file: the newest part is copied, the file emptied in place."""
    if not log.exists() or (size := log.stat().st_size) <= LOG_BYTES:
        return
    with log.open("rb+") as file:
        file.seek(size - LOG_BYTES // 2)
        log.with_suffix(".log.1").write_bytes(file.read())
        file.truncate(0)


def send(process: psutil.Process, sig: signal.Signals) -> None:
    """A signal to a process that may end at any moment."""
    try:
        process.send_signal(sig)
    except psutil.NoSuchProcess:
        return


def tree(pid: int) -> list[psutil.Process]:
    """The process and all its descendants, the root first; empty when it does not exist."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def freeze_tree(pid: int) -> list[psutil.Process]:
    """SIGSTOP for a tree, repeated until no descendant appears that was not stopped."""
    stopped: set[psutil.Process] = set()
    while fresh := [process for process in tree(pid) if process not in stopped]:
        for process in fresh:
            send(process, signal.SIGSTOP)
        stopped.update(fresh)
    return list(stopped)


def kill_tree(pid: int) -> list[psutil.Process]:
    """SIGKILL for a tree; returns what was killed, so that the caller can wait for the last of it."""
    victims = freeze_tree(pid)
    for process in victims:
        send(process, signal.SIGKILL)
    return victims


async def gone(processes: Sequence[psutil.Process], limit: float) -> None:
    """Waits until none of ``processes`` runs any more; a zombie counts as gone.

    Raises:
        TimeoutError: after ``limit`` seconds.
    """
    end = time.monotonic() + limit
    while any(runs(process) for process in processes):
        if time.monotonic() > end:
            raise TimeoutError(f"still running after {limit:g} s: {[process.pid for process in processes]}")
        await asyncio.sleep(POLL)


def runs(process: psutil.Process) -> bool:
    """Whether exactly this process (not a later one of the same pid) is still there."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
