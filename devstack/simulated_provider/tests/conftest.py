"""One process for all tests, as new for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from simulated_provider.testing import Simulator, running


@pytest.fixture(scope="session")
def process() -> Iterator[Simulator]:
    """The process."""
    with running() as simulator:
        yield simulator


@pytest.fixture
def simulator(process: Simulator) -> Simulator:
    """Well, and called by nobody yet."""
    process.reset()
    return process
