"""The command's frame: its subcommands, and one place where expected errors become one line and exit status 1."""

from __future__ import annotations

import sys

import typer

from devstack.cli import chaos, demo, logs, matrix, queue, status, up
from devstack.errors import DevstackError

app = typer.Typer(
    name="auralink",
    help="AuraLink on your machine: real servers, three services, and a fault for every dependency.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(up.up)
app.command()(up.down)
app.command()(status.status)
app.command()(logs.logs)
app.command()(demo.demo)
app.command()(matrix.matrix)
app.add_typer(chaos.app, name="chaos")
app.add_typer(queue.app, name="queue")


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except DevstackError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:  # the reader of a pipe has had enough
        sys.stderr.close()
        sys.exit(1)
