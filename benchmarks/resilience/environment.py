"""The environment in which the peers live, apart from the project's, and what is run in it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import BenchmarkError, Say

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).with_name("peers.txt")
UV = ROOT / ".uv" / "bin" / "uv"
LIBRARY = ROOT / "libs" / "resilience" / "src"


@dataclass(frozen=True)
class Environment:
    """An interpreter that can import every peer."""

    python: Path

    def run(self, *arguments: str, path: Sequence[Path] = (ROOT, LIBRARY), limit: float | None = None) -> str:
        """What `python arguments` prints, with `path` to import from beside the peers; stderr goes where ours goes.

        Raises:
            BenchmarkError: it failed.
            subprocess.TimeoutExpired: not done within `limit` seconds; it is killed.
        """
        # Bytecode is kept, as it is for whoever installs a library: an import is not a compilation.
        settings = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "PYTHONWARNINGS": "ignore",
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(ROOT / ".bench" / "bytecode"),
        }
        command = [str(self.python), *arguments]
        found = subprocess.run(command, env=settings, cwd=ROOT, stdout=subprocess.PIPE, timeout=limit, check=False)
        if found.returncode:
            raise BenchmarkError(f"{' '.join(command)} ended with {found.returncode}")
        return found.stdout.decode()


def environment(python: str, say: Say, peers: Path = PEERS, name: str = "resilience") -> Environment:
    """The environment for the interpreter `python`; made when it is not there, or not from the present list of peers.

    Raises:
        BenchmarkError: the peers cannot be installed.
    """
    version = _output(python, "-c", "import platform; print(platform.python_version())")
    folder = ROOT / ".bench" / f"{name}-{version}"
    stamp = folder / ".peers"
    wanted = hashlib.sha256(peers.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        say(f"installing the peers into {folder.relative_to(ROOT)}/")
        shutil.rmtree(folder, ignore_errors=True)
        uv = str(UV) if UV.exists() else shutil.which("uv")
        if not uv:
            raise BenchmarkError("uv is needed to install the peers: run `make setup`")
        _output(uv, "venv", "--quiet", "--python", python, str(folder))
        _output(uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), "-r", str(peers))
        stamp.write_text(wanted)
    return Environment(folder / "bin" / "python")


def _output(*command: str) -> str:
    # What a virtual environment's activation, or make, has set would send uv elsewhere.
    clean = {name: value for name, value in os.environ.items() if name not in ("UV_PYTHON", "UV_PROJECT_ENVIRONMENT")}
    found = subprocess.run(command, env=clean, stdout=subprocess.PIPE, check=False)
    if found.returncode:
        raise BenchmarkError(f"{' '.join(command)} ended with {found.returncode}")
    return found.stdout.decode().strip()


def base_python() -> str:
    """The interpreter that this process runs on, outside of any virtual environment."""
    return str(getattr(sys, "_base_executable", sys.executable))
