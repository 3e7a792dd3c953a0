"""The platform with a standby as a module's own: row D6, and every pair of rows.

Import the two fixtures into a module to have its tests run there.
"""

from __future__ import annotations

import pytest
import pytest_asyncio

from tests.harness.client import Account
from tests.harness.people import people
from tests.harness.platform import Platform

PEOPLE = 12


@pytest.fixture(scope="module")
def platform(standby_platform: Platform) -> Platform:
    """In place of the platform that most tests share."""
    return standby_platform


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def accounts(platform: Platform) -> list[Account]:
    """Users whom every instance knows."""
    return await people(platform, PEOPLE)
