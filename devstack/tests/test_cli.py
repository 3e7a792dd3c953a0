"""The `auralink` command as a user meets it: as a process, on real servers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from devstack.process import kill_tree, runs

LIMIT = 60.0
SERVERS = ("--port-base", "auto", "--only", "postgres,redis")
WITH_STANDBY = ("--port-base", "auto", "--only", "postgres,redis,standby", "--standby")
BROWSERLESS = {**os.environ, "NO_COLOR": "1"}


def command(state: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "devstack", *arguments, "--state-dir", str(state)]


def auralink(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(state, *arguments), capture_output=True, text=True, timeout=LIMIT, check=False, env=BROWSERLESS
    )


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"timed out waiting until {what}"
        time.sleep(0.02)


def stack_of(state: Path) -> dict[str, Any]:
    return dict(json.loads((state / "stack.json").read_text()))


@contextmanager
def running(state: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """`auralink up` in the foreground, ready; whatever is left of it is killed."""
    output = state.with_name(f"{state.name}.out")
    with output.open("w") as out:
        child = subprocess.Popen(command(state, "up", *options), stdout=out, stderr=out, text=True)
    try:
        until(lambda: "Ready after" in output.read_text() or child.poll() is not None, "ready")
        yield child, output
    finally:
        kill_tree(child.pid)
        child.wait(10)
        auralink(state, "down")


def pids(state: Path) -> list[int]:
    """Everything that runs for the stack: the servers with all their processes, and the fault proxy."""
    roots = [int((state / "run" / name).read_text().split()[0]) for name in ("postgres", "redis", "fault-proxy")]
    return [child.pid for pid in roots for child in (psutil.Process(pid), *psutil.Process(pid).children(True))]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and runs(psutil.Process(pid))


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(tmp_path: Path, sig: signal.Signals) -> None:
    state = tmp_path / "state"
    with running(state, *SERVERS) as (child, output):
        started = pids(state)
        assert len(started) > 6
        child.send_signal(sig)
        assert child.wait(20) == 0
        assert not any(alive(pid) for pid in started)
        assert not (state / "stack.json").exists()
        assert "stopped" in output.read_text()
        assert "Traceback" not in output.read_text()


def test_the_next_up_cleans_up_after_a_killed_one(tmp_path: Path) -> None:
    """SIGKILL for the supervisor; a frozen server cannot even die with it by itself in an orderly way."""
    state = tmp_path / "state"
    with running(state, *SERVERS) as (child, _):
        left = pids(state)
        assert auralink(state, "chaos", "freeze", "postgres").returncode == 0
        child.kill()
        child.wait(10)
        status = auralink(state, "status")
        assert status.returncode == 1
        assert "is gone" in status.stderr
        assert "auralink down" in status.stderr
    with running(state, *SERVERS) as (child, output):
        assert not any(alive(pid) for pid in left)
        assert "Ready after" in output.read_text()
        assert auralink(state, "status").returncode == 0


def test_cleaning_up_spares_a_stranger_with_a_recorded_pid(tmp_path: Path) -> None:
    """A pid that has been given to somebody else since is left alone."""
    state = tmp_path / "state"
    (state / "run").mkdir(parents=True)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (state / "run" / "redis").write_text(f"{stranger.pid}\nanother-boot:1\n")
    (state / "stack.json").write_text(json.dumps({"supervisor": {"pid": stranger.pid, "identity": "another-boot:1"}}))
    try:
        assert auralink(state, "down").stdout.strip() == "nothing was running"
        assert stranger.poll() is None
        assert not (state / "run" / "redis").exists()
    finally:
        stranger.kill()
        stranger.wait()


def test_a_busy_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        done = auralink(tmp_path / "state", "up", "--only", "redis", "--port-base", str(port))
    assert done.returncode == 1
    assert f"port {port}" in done.stdout
    assert f"pid {os.getpid()}" in done.stdout
    assert "--port-base auto" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_detached_chaos_status_logs_and_down(tmp_path: Path) -> None:
    state = tmp_path / "state"
    try:
        up = auralink(state, "up", "--detach", *WITH_STANDBY)
        assert up.returncode == 0, up.stdout + up.stderr
        assert auralink(state, "up", *SERVERS).returncode == 1  # not twice
        postgres = stack_of(state)["components"]["postgres"]["pid"]

        assert auralink(state, "chaos", "kill", "postgres").returncode == 0
        assert json.loads(auralink(state, "status", "--json").stdout)["components"]["postgres"]["state"] == "killed"
        heal = auralink(state, "chaos", "heal", "postgres")
        assert (heal.returncode, "accepts after" in heal.stdout) == (0, True)
        assert stack_of(state)["components"]["postgres"]["pid"] not in (None, postgres)

        assert stack_of(state)["components"]["standby"]["pid"]
        assert auralink(state, "chaos", "kill", "standby").returncode == 0
        assert "standby: started" in auralink(state, "chaos", "heal", "standby").stdout
        assert "started streaming WAL" in auralink(state, "logs", "standby").stdout

        assert auralink(state, "chaos", "delay", "redis", "--ms", "50").returncode == 0
        assert "delayed" in auralink(state, "status").stdout
        assert auralink(state, "chaos", "kill", "kafka").returncode == 1
        assert "database system is ready" in auralink(state, "logs", "postgres").stdout
        assert auralink(state, "logs", "kafka").returncode == 1
    finally:
        assert auralink(state, "down").returncode == 0
    status = auralink(state, "status")
    assert (status.returncode, "no stack is running" in status.stderr) == (1, True)


def test_a_database_that_does_not_start_is_explained_and_the_rest_runs(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with running(state, *SERVERS) as (child, _):
        data = Path(stack_of(state)["components"]["postgres"]["data_dir"])
        child.send_signal(signal.SIGINT)
        child.wait(20)
    (data / "PG_VERSION").write_text("9\n")
    with running(state, *SERVERS) as (child, output):
        text = output.read_text()
        assert "incompatible" in text
        assert "without postgres" in text
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 0


@pytest.mark.parametrize(
    "option", [("--port-base", "x"), ("--port-base", "80"), ("--only", "mongodb"), ("--only", "standby")]
)
def test_a_wrong_option_is_a_usage_error(tmp_path: Path, option: tuple[str, str]) -> None:
    assert auralink(tmp_path / "state", "up", *option).returncode == 2


def test_the_matrix_comes_from_the_code(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "devstack", "matrix", "--json"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert "dashboard.postgres" in {row["id"] for row in json.loads(shown.stdout)}
