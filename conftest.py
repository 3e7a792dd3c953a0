"""What holds for every test of the workspace.

The import comes first: pytest would otherwise take the folder ``devstack`` for the package of that name.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx

import devstack  # noqa: F401
from devstack import privileges


def pytest_collection_finish() -> None:
    """All that is imported stays: no collection looks at it again. Tests that collect take a hundredth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_databases_left_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run by root, stacks below pytest's private directory keep their databases outside of it, in /var/tmp."""
    yield
    privileges.sweep(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def _nothing_blocks_the_event_loop() -> Iterator[None]:
    """A blocking call on the event loop fails the test, wherever our services or libraries make it."""
    with blockbuster_ctx(["resilience", "service_kit", "dashboard", "ai_core", "webrtc"]) as guard:
        for name, function in guard.functions.items():
            # Looks at small local files: drivers and Alembic make them when they start.
            if name.startswith(("os.", "io.")):
                function.deactivate()
        # grpc.aio ends its poller's thread when the collector finds the last channel, wherever that happens.
        for name in ("threading.Lock.acquire", "threading.Lock.acquire_lock"):
            guard.functions[name].can_block_in("threading.py", {"_wait_for_tstate_lock"})
        yield
