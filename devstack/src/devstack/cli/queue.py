"""`auralink queue`: the services' write queues, through their admin API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from devstack.cli.options import DEFAULT_DIR, StateOption, existing
from devstack.client import ControlClient, call
from devstack.errors import NoStackError

LIMIT = 10.0  # s

app = typer.Typer(
    help="Look at the write queues, and deal with dead letters.", no_args_is_help=True, rich_markup_mode=None
)
ServiceOption = Annotated[str, typer.Option("--service", help="Whose queue.")]


@app.command("list")
def list_waiting(service: ServiceOption = "dashboard", state_dir: StateOption = DEFAULT_DIR) -> None:
    """The writes that wait, the oldest first, with depth and age."""
    _show(_call(state_dir, service, "GET", ""))


@app.command()
def dead(service: ServiceOption = "dashboard", state_dir: StateOption = DEFAULT_DIR) -> None:
    """The dead letters: writes that could not be applied, with the reason."""
    _show(_call(state_dir, service, "GET", "/dead-letters"))


@app.command()
def replay(
    operation_id: Annotated[str, typer.Argument(help="The id that `auralink queue dead` shows.")],
    service: ServiceOption = "dashboard",
    state_dir: StateOption = DEFAULT_DIR,
) -> None:
    """Put one dead letter back into the queue."""
    _call(state_dir, service, "POST", f"/dead-letters/{operation_id}/replay")
    typer.echo(f"{operation_id} is queued again")


@app.command()
def clear(
    operation_id: Annotated[str, typer.Argument(help="The id that `auralink queue dead` shows; without it, all.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    service: ServiceOption = "dashboard",
    state_dir: StateOption = DEFAULT_DIR,
) -> None:
    """Throw dead letters away: these writes are lost for good."""
    what = f"dead letter {operation_id}" if operation_id else f"all dead letters of {service}"
    if not yes:
        typer.confirm(f"Throw away {what}?", abort=True)
    _call(state_dir, service, "DELETE", "/dead-letters" + (f"/{operation_id}" if operation_id else ""))
    typer.echo(f"{what}: gone")


def _call(state_dir: Path, service: str, method: str, path: str) -> dict[str, Any]:
    stack = ControlClient(existing(state_dir)).stack
    if service not in stack["services"]:
        raise NoStackError(f"no service {service!r}; there are {', '.join(stack['services'])}")
    return call(f"{stack['services'][service]['http']}/admin/queue{path}", method, stack["admin_token"], LIMIT)


def _show(found: dict[str, Any]) -> None:
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
