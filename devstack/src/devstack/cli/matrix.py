"""`auralink matrix`: the degradation matrix as the code declares it."""

from __future__ import annotations

import importlib
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from devstack.cli.options import JsonOption

if TYPE_CHECKING:
    from resilience.matrix import Row

SERVICES = ("dashboard", "ai_core", "webrtc")


def rows() -> list[Row]:
    """Every row that the services declare, in the matrix's order."""
    found: list[Row] = []
    for service in SERVICES:
        found += importlib.import_module(f"{service}.degradation").ROWS
    return found


def matrix(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table of the documentation.")] = False,
    as_data: JsonOption = False,
) -> None:
    """Show the degradation matrix, from the code's own declarations."""
    from resilience.matrix import as_json
    from resilience.matrix import markdown as as_markdown

    declared = rows()
    if as_data:
        typer.echo(json.dumps(as_json(declared), indent=2))
    elif markdown:
        typer.echo(as_markdown(declared), nl=False)
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(table(declared))


def table(declared: list[Row]) -> Table:
    """For a terminal."""
    made = Table(show_lines=True)
    for title in ("row", "service", "dependency", "priority", "opens after / for", "fallback", "what a caller sees"):
        made.add_column(title)
    for row in declared:
        made.add_row(
            row.label,
            row.service,
            row.title,
            f"{row.priority} {row.impact}",
            f"{row.max_failures} / {row.open_seconds:g} s",
            " → ".join(row.fallbacks) or "none",
            row.promise,
        )
    return made
