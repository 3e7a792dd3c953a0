"""Options that several subcommands have, and how they find their state directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from devstack.errors import NoStackError
from devstack.state import StateDir

DEFAULT_DIR = Path(os.environ.get("AURALINK_STATE_DIR", ".auralink"))

StateOption = Annotated[
    Path,
    typer.Option("--state-dir", help="Where the stack's data, logs and stack.json are.", show_default=".auralink"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


def existing(path: Path) -> StateDir:
    """The state directory of a stack.

    Raises:
        NoStackError: it does not exist.
    """
    if not path.is_dir():
        raise NoStackError(f"no stack has run on {path.absolute()}; start one with `auralink up`")
    return StateDir(path)
