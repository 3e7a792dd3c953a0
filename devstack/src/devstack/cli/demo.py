"""`auralink demo`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from devstack.cli.up import say

if TYPE_CHECKING:
    from devstack.containers import Containers
    from devstack.demo.scenarios import Scenario
    from devstack.demo.tour import Result


def demo(
    row: Annotated[str, typer.Option("--row", help="Only this row of the matrix, for example D1.")] = "",
    compose: Annotated[
        bool, typer.Option("--compose", help="On the platform that `docker compose up` runs from this folder.")
    ] = False,
) -> None:
    """A guided tour: break each row in turn under light load, and show what callers saw and how long recovery took.

    It runs on a platform of its own, with fresh data, on free ports; in containers on the one that is there, with users
    of its own. Exit status 1 if a row did not behave as its matrix says.
    """
    # Here, because drivers and frameworks come with it: half a second that other commands need not spend.
    from devstack.demo.scenarios import SCENARIOS

    chosen = [scenario for scenario in SCENARIOS if row.upper() in ("", scenario.row)]
    if not chosen:
        known = ", ".join(sorted({scenario.row for scenario in SCENARIOS}))
        raise typer.BadParameter(f"the tour has no row {row!r}; it has {known}", param_hint="--row")
    results = asyncio.run(_in_containers(chosen)) if compose else _on_its_own(chosen)
    Console(width=None if sys.stdout.isatty() else 160).print(table(results))
    raise typer.Exit(1 if any(result.broken for result in results) else 0)


def _on_its_own(chosen: list[Scenario]) -> list[Result]:
    from devstack.components import turn

    if any(scenario.dependency == "turn" for scenario in chosen) and not turn.installed():
        say(turn.MISSING)
        chosen = [scenario for scenario in chosen if scenario.dependency != "turn"]
    with tempfile.TemporaryDirectory(prefix="auralink-demo-") as folder:
        Path(folder).chmod(0o711)  # PostgreSQL may run as another user
        return asyncio.run(_run(chosen, folder))


async def _in_containers(chosen: list[Scenario]) -> list[Result]:
    from devstack.containers import Containers
    from devstack.demo.tour import tour

    containers = await Containers.find()
    shown = [scenario for scenario in chosen if await _is_set_up(containers, scenario)]
    if left := sorted({one.row for one in chosen} - {one.row for one in shown}):
        say(f"not shown, since these containers are not set up for it (docs/how-to/compose.md): {', '.join(left)}")
    return await tour(containers, shown, say)


async def _is_set_up(containers: Containers, scenario: Scenario) -> bool:
    """Whether the row can be broken here: its part is ours, in use, and a container."""
    from devstack.demo.faults import DROP

    settings = containers.settings("ai-core")
    if scenario.dependency == "providers" and "//providers:" not in settings.get("OPENAI_BASE_URL", ""):
        return False
    if scenario.fault == DROP or (scenario.row == "A4" and settings.get("AI_EMBEDDING_MODEL") == "local"):
        return False
    return await containers.has(scenario.service, scenario.guards)


async def _run(chosen: list[Scenario], folder: str) -> list[Result]:
    from devstack.components import turn
    from devstack.demo.tour import tour
    from devstack.stack import Stack
    from devstack.topology import Topology

    say("starting a platform for the tour")
    topology = Topology(standby=True, turn=turn.installed(), env=embedding())
    async with Stack(folder, topology, port_base=None, say=say) as stack:
        say(f"watch it at {stack.url('dashboard')}/")
        return await tour(stack, chosen, say)


def embedding() -> dict[str, str]:
    """An embedding provider that can be broken, although it is a simulated one; with real providers the user's own."""
    from devstack.components import providers

    return {} if providers.real() else {"AI_EMBEDDING_MODEL": "openai:text-embedding-3-small"}


def table(results: list[Result]) -> Table:
    """The tour's closing page."""
    from devstack.demo.tour import recovery_text, verdict

    made = Table(title="what the matrix promises, and what was seen", title_justify="left")
    for title in ("row", "dependency", "fault", "calls", "slowest answer", "recovery", "verdict"):
        made.add_column(title)
    for result in results:
        slowest = max((call.seconds for call in result.observed.calls), default=0.0)
        colour = "red" if result.broken else "green"
        made.add_row(
            result.scenario.row,
            result.scenario.dependency,
            result.scenario.fault_name,
            str(len(result.observed.calls)),
            f"{slowest * 1000:.0f} ms",
            recovery_text(result),
            f"[{colour}]{verdict(result)}[/{colour}]",
        )
    return made
