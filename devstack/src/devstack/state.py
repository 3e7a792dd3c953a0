"""The state directory (``.auralink/``): what survives a run, describes the running one, and a killed one left.

    lock            held by the supervisor as long as it lives
    stack.json      the running stack (0600: it holds the admin token)
    secrets.json    generated once and kept (0600)
    ports.json      ports of the last run
    runtime.json    where PostgreSQL's files are, when they cannot be here
    run/            one record per started process: pid and identity
    logs/  redis/  postgres/  kafka/

The directory itself can be traversed but not listed by others (0711), since PostgreSQL may run as another user.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from devstack import launch
from devstack.errors import AlreadyRunningError
from devstack.process import kill_tree, send


class StateDir:
    """Paths and files of one state directory. Creating the object creates the directory."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o711)
        self.logs = self._folder("logs")
        self.run = self._folder("run")
        self.stack_file = self.path / "stack.json"
        self._lock: int | None = None

    def _folder(self, name: str) -> Path:
        folder = self.path / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def log(self, component: str) -> Path:
        return self.logs / f"{component}.log"

    def record(self, component: str) -> Path:
        return self.run / component

    def lock(self) -> None:
        """Takes the directory for this process; the kernel gives it back when the process ends, however it ends.

        Raises:
            AlreadyRunningError: somebody else has it.
        """
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.read(handle, 32).decode(errors="replace").strip() or "?"
            os.close(handle)
            raise AlreadyRunningError(f"a stack is already running on {self.path} (supervisor pid {pid})") from None
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        self._lock = handle

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the directory; empty when it is missing or unreadable (a run killed while writing)."""
        with suppress(OSError, ValueError):
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return content
        return {}

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Replaces a JSON file at once, readable by its owner only."""
        target = self.path / name
        fresh = target.with_name(f".{name}.{os.getpid()}")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
        fresh.replace(target)

    def secret(self, name: str) -> str:
        """A random secret, the same at every start."""
        known = self.read("secrets.json")
        if not isinstance(known.get(name), str):
            known[name] = secrets.token_hex(32)
            self.write("secrets.json", known)
        return str(known[name])


def supervisor_alive(stack: dict[str, Any]) -> bool:
    """Whether the supervisor that wrote ``stack`` (the content of stack.json) still runs."""
    supervisor = stack.get("supervisor", {})
    pid = supervisor.get("pid")
    return isinstance(pid, int) and same_process(pid, str(supervisor.get("identity", "")))


def same_process(pid: int, identity: str) -> bool:
    """Whether ``pid`` is still the process of which ``identity`` was recorded."""
    if not psutil.pid_exists(pid):
        return False
    return launch.identity(pid) == identity if identity else False


def clean_up(state: StateDir) -> list[str]:
    """Ends what a killed supervisor left running and removes its records; returns what was found, for the user.

    Only call with the lock held. A process is touched only when its pid *and* its start time are those recorded, or
    when it is a PostgreSQL process working inside a data directory of the stack that was killed.
    """
    found: list[str] = []
    components = state.read("stack.json").get("components", {}).values()
    databases = [Path(component["data_dir"]) for component in components if component.get("data_dir")]
    for record in sorted(state.run.iterdir()):
        pid, _, identity = record.read_text(encoding="ascii", errors="replace").strip().partition("\n")
        if pid.isdigit() and same_process(int(pid), identity):
            kill_tree(int(pid))
            found.append(f"{record.name} (pid {pid})")
        record.unlink()
    orphans = [process for folder in databases for process in processes_in(folder)]
    for process in orphans:
        send(process, signal.SIGKILL)
    found += [f"postgres backend (pid {process.pid})" for process in orphans]
    state.stack_file.unlink(missing_ok=True)
    return found


def processes_in(folder: Path) -> list[psutil.Process]:
    """PostgreSQL processes whose working directory is ``folder``: all of a server's processes work in its data
    directory, so these are also the ones that outlived their postmaster."""
    return [process for process in psutil.process_iter() if _works_in(process, folder)]


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.name().startswith("postgres") and process.cwd() == str(folder)
    except (psutil.Error, OSError):
        return False
