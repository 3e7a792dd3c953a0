"""Generates the gRPC stubs of proto/ into libs/contracts/src (make proto); `--check` fails when they are stale."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
TARGET = ROOT / "libs/contracts/src"


def generate(into: Path) -> None:
    """Writes all stubs below ``into``."""
    files = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    outputs = [f"--{kind}_out={into}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    # The plugins are commands of the same environment, which need not be the active one.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *outputs, *files]
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})


def stubs(base: Path) -> set[Path]:
    """Relative paths of the generated files below ``base``."""
    return {path.relative_to(base) for path in base.rglob("*_pb2*.py*") if path.suffix in {".py", ".pyi"}}


def check() -> int:
    """Compares the committed stubs with freshly generated ones; 1 when they differ."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        names = stubs(fresh) | stubs(TARGET)
        stale = sorted(
            str(name)
            for name in names
            if not (fresh / name).is_file()
            or not (TARGET / name).is_file()
            or not filecmp.cmp(fresh / name, TARGET / name, shallow=False)
        )
    if stale:
        print("out of date, run `make proto`:", *stale, sep="\n  ")
    return 1 if stale else 0


def main() -> int:
    """Regenerates, or checks with ``--check``."""
    if "--check" in sys.argv[1:]:
        return check()
    shutil.rmtree(TARGET / "auralink", ignore_errors=True)
    generate(TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
