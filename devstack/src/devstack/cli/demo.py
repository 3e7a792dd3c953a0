"""`auralink demo`."""

from __future__ import annotations

import typer


def demo() -> None:
    """A guided tour: breaks each row in turn under light load and shows what callers saw."""
    raise typer.Exit(1)
