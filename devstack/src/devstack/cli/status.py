"""`auralink status`: the live matrix and the processes."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from devstack.cli.options import DEFAULT_DIR, JsonOption, StateOption, existing
from devstack.client import ControlClient

COLOURS = {"closed": "green", "half_open": "yellow", "open": "red", "running": "green", "not started": "yellow"}


def status(state_dir: StateOption = DEFAULT_DIR, as_data: JsonOption = False) -> None:
    """Show the live matrix: every row with circuit, fallback, queue depth and time in state; and every process."""
    found = ControlClient(existing(state_dir)).call("GET", "/status", 10)
    if as_data:
        typer.echo(json.dumps(found, indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(row_table(found))
    for name, service in found["services"].items():
        if service["error"]:
            console.print(f"[red]{name}: {service['error']}[/red] ({service['http']})")
    console.print(process_table(found["components"]))


def row_table(found: dict[str, Any]) -> Table:
    """One line per row of the matrix."""
    table = Table(title="rows", title_justify="left")
    for title in (
        "row",
        "service",
        "mode",
        "dependency",
        "circuit",
        "since",
        "fallback in use",
        "queued",
        "last error",
    ):
        table.add_column(title)
    for row in found["rows"]:
        table.add_row(
            str(row.get("label", "")),
            row["service"],
            str(row["mode"] or ""),
            row["dependency"],
            coloured(str(row.get("circuit", "?"))),
            seconds(row.get("state_seconds")),
            str(row.get("fallback") or ""),
            str(row["queue_depth"]),
            str(row.get("last_error") or "")[:60],
        )
    return table


def process_table(components: dict[str, Any]) -> Table:
    """One line per process."""
    table = Table(title="processes", title_justify="left")
    for title in ("component", "state", "faults", "pid", "port", "up for"):
        table.add_column(title)
    for name, one in components.items():
        ended = f" ({one['exit_code']})" if one["state"] == "exited" else ""
        what = f": {one['problem'].splitlines()[0]}" if one["problem"] else ""
        table.add_row(
            name,
            coloured(one["state"]) + ended + what,
            ", ".join(one["faults"]),
            str(one["pid"] or ""),
            str(one["port"]),
            seconds(one["uptime_s"]),
        )
    return table


def coloured(state: str) -> str:
    colour = COLOURS.get(state, "red")
    return f"[{colour}]{state}[/{colour}]"


def seconds(value: float | None) -> str:
    """``75.3`` as ``1 m 15 s``."""
    if value is None:
        return ""
    minutes, rest = divmod(int(value), 60)
    return f"{minutes} m {rest} s" if minutes else f"{rest} s"
