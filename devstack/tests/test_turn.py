"""coturn as a component: broken and mended like the others, and left out where it is not installed."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import psutil
import pytest

from devstack.cli.up import parse_only
from devstack.components import turn
from devstack.errors import ChaosError
from devstack.stack import Stack
from devstack.topology import Topology

ALONE = Topology(only=frozenset({"turn"}), turn=True)


@pytest.mark.skipif(not turn.installed(), reason="coturn is not installed (Debian: apt install coturn)")
async def test_it_is_broken_and_mended(tmp_path: Path) -> None:
    async with Stack(tmp_path, ALONE, port_base=None) as stack:
        secret = stack.state.secret("turn")
        process = stack.unit("turn").process
        assert process is not None
        assert secret not in " ".join(psutil.Process(process.pid).cmdline())
        assert stat.S_IMODE((tmp_path / "turn" / "turnserver.conf").stat().st_mode) == 0o600
        assert stack.describe()["components"]["turn"] == {"pid": process.pid, "url": stack.url("turn")}
        assert secret not in str(stack.describe())
        await stack.freeze("turn")
        assert not await stack.accepts("turn")
        assert (await stack.heal("turn")).actions == ("thawed",)
        await stack.kill("turn")
        assert not await stack.accepts("turn")
        assert (await stack.heal("turn")).accepts
        for fault in (stack.cut, stack.delay):
            with pytest.raises(ChaosError, match="killed and frozen only"):
                await fault("turn")
        assert not stack.unit("turn").faults


def test_without_coturn_the_platform_has_its_address_and_nobody_answers_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "turn" not in ALONE.components
    topology = parse_only("")
    assert topology.turn
    assert "turn" not in topology.components


def test_the_service_is_told_of_it_when_it_is_wanted() -> None:
    assert "turn" not in Topology().components
    assert parse_only("webrtc").turn
