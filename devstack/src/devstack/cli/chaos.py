"""`auralink chaos`: break a real part of the running platform, and mend it. Processes are broken by their supervisor,
containers by Docker's engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

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


@app.callback()
def chaos(
    context: typer.Context,
    compose: Annotated[
        bool, typer.Option("--compose", help="In the containers that `docker compose up` runs from this folder.")
    ] = False,
) -> None:
    """Break a real part of the running platform, and mend it."""
    context.obj = compose


@app.command()
def kill(context: typer.Context, component: Component, state_dir: StateOption = DEFAULT_DIR) -> None:
    """SIGKILL: the process and its children are gone at once."""
    _break(context, state_dir, "kill", component)
    _say(context, component, f"{component} is dead (SIGKILL)")


@app.command()
def freeze(context: typer.Context, component: Component, state_dir: StateOption = DEFAULT_DIR) -> None:
    """SIGSTOP, a container paused: it still accepts connections, and never answers."""
    _break(context, state_dir, "freeze", component)
    _say(context, component, f"{component} is frozen ({'paused' if context.obj else 'SIGSTOP'})")


@app.command()
def delay(
    context: typer.Context,
    component: Component,
    ms: Annotated[int, typer.Option("--ms", min=0, max=3_600_000, help="Milliseconds added to every answer.")] = 5000,
    state_dir: StateOption = DEFAULT_DIR,
) -> None:
    """Latency on every connection to it; of a container by netem, which takes root and a kernel that has it."""
    _break(context, state_dir, "delay", component, ms=ms)
    _say(context, component, f"{component} answers {ms} ms late")


@app.command()
def cut(context: typer.Context, component: Component, state_dir: StateOption = DEFAULT_DIR) -> None:
    """Every connection to it is reset, present and new; a container is taken off its network."""
    _break(context, state_dir, "cut", component)
    _say(context, component, f"{component} is cut off" if context.obj else f"connections to {component} are reset")


@app.command()
def heal(context: typer.Context, component: Component, state_dir: StateOption = DEFAULT_DIR) -> None:
    """Undo everything; a dead part starts again on the same data and port."""
    if context.obj:
        healed = vars(_containers("heal", component)) | {"problem": "its health check fails"}
    else:
        healed = ControlClient(existing(state_dir)).call("POST", f"/chaos/heal/{component}")
    done = ", ".join(healed["actions"]) or "nothing was wrong"
    if not healed["accepts"]:
        typer.echo(
            f"{done}, but it does not accept work after {healed['seconds']:.1f} s\n{healed['problem']}", err=True
        )
        raise typer.Exit(1)
    typer.echo(f"{component}: {done}; it accepts after {healed['seconds']:.2f} s")


def _break(context: typer.Context, state_dir: Path, verb: str, component: str, **options: int) -> None:
    if context.obj:
        _containers(verb, component, **options)
    else:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        ControlClient(existing(state_dir)).call("POST", f"/chaos/{verb}/{component}?{query}")


def _containers(verb: str, component: str, **options: int) -> Any:
    # Here, because drivers come with it: half a second that the other commands need not spend.
    from devstack.containers import Containers

    async def act() -> Any:
        return await getattr(await Containers.find(), verb)(component, **options)

    return asyncio.run(act())


def _say(context: typer.Context, component: str, done: str) -> None:
    typer.echo(f"{done}; mend it with: auralink chaos {'--compose ' if context.obj else ''}heal {component}")
