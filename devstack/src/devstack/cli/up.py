"""`auralink up` and `auralink down`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devstack.cli.options import DEFAULT_DIR, StateOption, existing
from devstack.client import ControlClient
from devstack.errors import AlreadyRunningError, NoStackError
from devstack.ports import DEFAULT_BASE
from devstack.process import rotate
from devstack.progress import FAILED_MARK, READY_LIMIT, READY_MARK
from devstack.state import StateDir, clean_up

if TYPE_CHECKING:
    from devstack.topology import Topology

DOWN_LIMIT = 45.0  # s: the services' drain, then the servers
OnlyOption = Annotated[str, typer.Option("--only", metavar="A,B", help="Start only these components.")]
PortBase = Annotated[
    str,
    typer.Option(
        "--port-base",
        metavar="N|auto",
        help="First port: HTTP at N.. (dashboard, ai-core, webrtc), gRPC at N+1000..; auto: free ports.",
    ),
]


def up(
    state_dir: StateOption = DEFAULT_DIR,
    port_base: PortBase = str(DEFAULT_BASE),
    only: OnlyOption = "",
    standby: Annotated[
        bool,
        typer.Option("--standby", help="With a standby of PostgreSQL, from which the Dashboard can read."),
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when ready; `auralink down` stops it.")
    ] = False,
) -> None:
    """Start the platform: PostgreSQL, Valkey, a Kafka broker, a simulated LLM provider, coturn where it is installed,
    and the three services.

    Ctrl-C stops it.
    """
    base, topology = parse_base(port_base), parse_only(only, standby=standby)
    if detach:
        options = ["--port-base", port_base, "--only", only, *(["--standby"] if standby else [])]
        raise typer.Exit(_detached(StateDir(state_dir), options))
    # Here, because drivers and frameworks come with it: half a second that other commands need not spend.
    from devstack.components import turn
    from devstack.stack import Stack
    from devstack.supervisor import run

    stack = Stack(state_dir, topology, port_base=base, say=say)
    if topology.only is None and not turn.installed():
        say(turn.MISSING)
    raise typer.Exit(asyncio.run(run(stack, say)))


def say(line: str) -> None:
    """A line of progress, seen at once also through a pipe."""
    typer.echo(line)
    sys.stdout.flush()


def parse_base(text: str) -> int | None:
    """``auto`` is ``None``.

    Raises:
        typer.BadParameter: neither ``auto`` nor a usable port.
    """
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or not 1024 <= int(text) <= 64_000:
        raise typer.BadParameter(
            f"{text!r} is neither `auto` nor a number from 1024 to 64000", param_hint="--port-base"
        )
    return int(text)


def parse_only(text: str, *, standby: bool = False) -> Topology:
    """The platform, or the named part of it.

    Raises:
        typer.BadParameter: a name that is no component.
    """
    from devstack.topology import Topology

    names = frozenset(filter(None, text.split(",")))
    if unknown := names - set(Topology(standby=standby, turn=True).components):
        raise typer.BadParameter(f"no such component: {', '.join(sorted(unknown))}", param_hint="--only")
    return Topology(standby=standby, turn=True, only=names or None)


def _detached(state: StateDir, options: list[str]) -> int:
    """Starts ``up`` in a session of its own and shows its progress until it is ready; returns the exit status."""
    log = state.log("supervisor")
    rotate(log)
    with log.open("ab") as out:
        begin = out.seek(0, 2)
        child = subprocess.Popen(  # noqa: S603  (ourselves)
            [sys.executable, "-m", "devstack", "up", "--state-dir", str(state.path), *options],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _follow(child, log, begin)


def _follow(child: subprocess.Popen[bytes], log: Path, begin: int) -> int:
    end = time.monotonic() + READY_LIMIT + 15
    with log.open("rb") as progress:
        progress.seek(begin)
        shown = ""
        while time.monotonic() < end:
            code = child.poll()
            fresh = progress.read().decode(errors="replace")
            typer.echo(fresh, nl=False)
            shown += fresh
            if READY_MARK in shown or FAILED_MARK in shown:
                typer.echo("Running in the background; `auralink down` stops it.")
                return 0 if READY_MARK in shown else 1
            if code is not None:
                return code or 1
            time.sleep(0.05)
    typer.echo(f"error: not ready in time; see {log}, or `auralink down`", err=True)
    return 1


def down(state_dir: StateOption = DEFAULT_DIR) -> None:
    """Stop the platform. Its data stays. Also removes what a killed supervisor left running."""
    state = existing(state_dir)
    try:
        client = ControlClient(state)
    except NoStackError:
        _sweep(state)
        return
    client.call("POST", "/down")
    if not _released(state, DOWN_LIMIT):
        typer.echo(f"error: the supervisor still runs after {DOWN_LIMIT:g} s", err=True)
        raise typer.Exit(1)
    typer.echo("stopped")


def _released(state: StateDir, limit: float) -> bool:
    """Waits until nobody holds the state directory."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        try:
            state.lock()
        except AlreadyRunningError:
            time.sleep(0.1)
        else:
            state.unlock()
            return True
    return False


def _sweep(state: StateDir) -> None:
    try:
        state.lock()
    except AlreadyRunningError as error:
        raise NoStackError(f"{error}; it is just starting or stopping: try again") from None
    found = clean_up(state)
    state.unlock()
    typer.echo("\n".join(f"ended {what}" for what in found) or "nothing was running")
