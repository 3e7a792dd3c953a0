"""The soak keeps working, and the platform keeps its promises for the twelve seconds that a test can spend on it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEED = 7
LIMIT = 100  # s, everything included


@pytest.mark.stack
@pytest.mark.timeout(LIMIT + 20)
async def test_a_short_soak_keeps_every_promise(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.soak", "--minutes", "0.2", "--rate", "30"),
        *("--seed", str(SEED), "--out", str(tmp_path)),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(LIMIT):
            printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, printed.decode()
    assert (tmp_path / "history.jsonl").stat().st_size > 0
    assert (tmp_path / "nemesis.json").stat().st_size > 0
