"""`auralink chaos`: break a real part of the running platform, and mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from devstack.cli.options import DEFAULT_DIR, StateOption, existing
from devstack.client import ControlClient

app = typer.Typer(
    help="Break a real part of the running platform, and mend it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Component = Annotated[
    str, typer.Argument(help="postgres, standby, redis, kafka, turn, providers, dashboard, ai-core or webrtc.")
]


@app.command()
def kill(component: Component, state_dir: StateOption = DEFAULT_DIR) -> None:
    """SIGKILL: the process and its children are gone at once."""
    _break(state_dir, f"/chaos/kill/{component}", f"{component} is dead (SIGKILL)", component)


@app.command()
def freeze(component: Component, state_dir: StateOption = DEFAULT_DIR) -> None:
    """SIGSTOP: it still accepts connections, and never answers."""
    _break(state_dir, f"/chaos/freeze/{component}", f"{component} is frozen (SIGSTOP)", component)


@app.command()
def delay(
    component: Component,
    ms: Annotated[int, typer.Option("--ms", min=0, max=3_600_000, help="Milliseconds added to every answer.")] = 5000,
    state_dir: StateOption = DEFAULT_DIR,
) -> None:
    """Latency on every connection to it."""
    _break(state_dir, f"/chaos/delay/{component}?ms={ms}", f"{component} answers {ms} ms late", component)


@app.command()
def cut(component: Component, state_dir: StateOption = DEFAULT_DIR) -> None:
    """Every connection to it is reset, present and new."""
    _break(state_dir, f"/chaos/cut/{component}", f"connections to {component} are reset", component)


@app.command()
def heal(component: Component, state_dir: StateOption = DEFAULT_DIR) -> None:
    """Undo everything; a dead part starts again on the same data and port."""
    healed = ControlClient(existing(state_dir)).call("POST", f"/chaos/heal/{component}")
    done = ", ".join(healed["actions"]) or "nothing was wrong"
    if not healed["accepts"]:
        typer.echo(
            f"{done}, but it does not accept work after {healed['seconds']:.1f} s\n{healed['problem']}", err=True
        )
        raise typer.Exit(1)
    typer.echo(f"{component}: {done}; it accepts after {healed['seconds']:.2f} s")


def _break(state_dir: Path, path: str, done: str, component: str) -> None:
    ControlClient(existing(state_dir)).call("POST", path)
    typer.echo(f"{done}; mend it with: auralink chaos heal {component}")
