"""`auralink up`: one process that starts the stack, shows progress, answers the control API, and stops everything."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from devstack.control import Control
from devstack.errors import DevstackError, NotReadyError
from devstack.progress import FAILED_MARK, READY_LIMIT, READY_MARK
from devstack.stack import Stack

NEXT = """\
Try next:
  {auralink} chaos kill postgres     then read and change your profile on the page
  {auralink} status                  the matrix, live
  {auralink} chaos heal postgres     and see the change arrive"""


async def run(stack: Stack, say: Callable[[str], None]) -> int:
    """Runs until Ctrl-C, SIGTERM or `auralink down`; returns the exit status."""
    control = Control(stack)
    loop = asyncio.get_running_loop()
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # the terminal is closed, unless under nohup
        signals.append(signal.SIGHUP)
    for sig in signals:
        loop.add_signal_handler(sig, control.asked_to_stop.set)
    try:
        await _serve(stack, control, say)
    except (DevstackError, OSError) as error:
        say(f"error: {error}")
        return 1
    finally:
        for sig in signals:
            loop.remove_signal_handler(sig)
    return 0


async def _serve(stack: Stack, control: Control, say: Callable[[str], None]) -> None:
    begun = time.monotonic()
    try:
        await stack.open()
        stack.control = await control.start()
        starting = asyncio.create_task(_start(stack, say, begun))
        stopping = asyncio.create_task(control.asked_to_stop.wait())
        try:
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await stopping
        finally:
            await _ended(starting, stopping)
    finally:
        if stack.units:
            say("stopping")
        await control.stop()
        await stack.close()
    say("stopped; the data stays in " + str(stack.state.path))


async def _start(stack: Stack, say: Callable[[str], None], begun: float) -> None:
    first = "" if stack.plan.postgres.home.data.exists() else " (first start: the database cluster is being made)"
    say(f"starting {', '.join(stack.units)}{first}")
    await asyncio.gather(*(_bring_up(stack, name, say, begun) for name in stack.units))
    late = [name for name in stack.units if not await stack.accepts(name)]
    seconds = time.monotonic() - begun
    if any(name in stack.topology.services for name in late):
        say(f"{FAILED_MARK}: {', '.join(late)}. The rest keeps running; logs are in {stack.state.logs}")
    else:
        without = f", without {', '.join(late)}: the services say so and go on" if late else ""
        where = f". Open {stack.url('dashboard')}/" if "dashboard" in stack.units else ""
        say(f"{READY_MARK} {seconds:.1f} s{without}{where}\n{next_steps(stack)}")


def next_steps(stack: Stack) -> str:
    """Three commands that work as they are typed, in this shell and for this state directory."""
    ours = Path(sys.executable).with_name("auralink")
    program = "auralink" if shutil.which("auralink") == str(ours) else os.path.relpath(ours)
    elsewhere = stack.state.path != Path(".auralink").absolute()
    return NEXT.format(auralink=f"AURALINK_STATE_DIR={stack.state.path} {program}" if elsewhere else program)


async def _bring_up(stack: Stack, name: str, say: Callable[[str], None], begun: float) -> None:
    """Starts one component and says how that ended. The limit is the same for all, counted from the start."""
    await stack.start(name)
    with suppress(NotReadyError):
        await stack.wait_ready(READY_LIMIT - (time.monotonic() - begun), name)
        where = stack.url(name) if name in stack.topology.services else f"port {stack.unit(name).component.port}"
        say(f"  {name:<12} accepts after {time.monotonic() - begun:4.1f} s  ({where})")
        return
    say(f"  {stack.explain(name)}")


async def _ended(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=5)
