"""What holds for every test of the workspace.

The import comes first: pytest would otherwise take the folder ``devstack`` for the package of that name.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import devstack  # noqa: F401
from devstack import privileges


@pytest.fixture(scope="session", autouse=True)
def _no_databases_left_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run by root, stacks below pytest's private directory keep their databases outside of it, in /var/tmp."""
    yield
    privileges.sweep(tmp_path_factory.getbasetemp())
