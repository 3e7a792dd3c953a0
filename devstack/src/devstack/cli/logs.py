"""`auralink logs`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from devstack.cli.options import DEFAULT_DIR, StateOption, existing
from devstack.errors import NoStackError

POLL = 0.2  # s
TAIL_BYTES = 2**20


def logs(
    component: Annotated[str, typer.Argument(help="One component; without it, all.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 50,
    state_dir: StateOption = DEFAULT_DIR,
) -> None:
    """Show the components' logs."""
    folder = existing(state_dir).logs
    files = sorted(folder.glob("*.log"))
    if component:
        files = [file for file in files if file.stem == component]
    if not files:
        known = ", ".join(sorted(file.stem for file in folder.glob("*.log"))) or "none yet"
        raise NoStackError(f"no log of {component or 'anything'} in {folder}; there are: {known}")
    tails = [Tail(file, prefix=f"{file.stem:<12} | " if len(files) > 1 else "") for file in files]
    for tail in tails:
        for line in tail.last(lines):
            typer.echo(line)
    while follow:
        for tail in tails:
            for line in tail.fresh():
                typer.echo(line)
        time.sleep(POLL)


class Tail:
    """Reads what is appended to a file that may be emptied or replaced meanwhile."""

    def __init__(self, path: Path, prefix: str) -> None:
        self._path = path
        self._prefix = prefix
        self._position = 0
        self._rest = ""

    def last(self, count: int) -> list[str]:
        """The last ``count`` lines; afterwards ``fresh`` continues behind them."""
        self._position = max(0, self._path.stat().st_size - TAIL_BYTES)
        lines = list(self.fresh())
        return lines[-count:] if count else []

    def fresh(self) -> Iterator[str]:
        """Complete lines that have been added since the last look."""
        try:
            with self._path.open("rb") as file:
                if self._path.stat().st_size < self._position:
                    self._position, self._rest = 0, ""
                file.seek(self._position)
                text = self._rest + file.read(TAIL_BYTES).decode(errors="replace")
                self._position = file.tell()
        except FileNotFoundError:
            return
        *complete, self._rest = text.split("\n")
        yield from (self._prefix + line for line in complete)
