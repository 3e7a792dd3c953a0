"""Addresses of databases, as a managed service gives them."""

import pytest

from service_kit.migrations import driver_url


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("postgres://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql://h/d?sslmode=verify-full", "postgresql+asyncpg://h/d?ssl=verify-full"),
        ("postgresql://h/d?x=1&sslmode=require", "postgresql+asyncpg://h/d?x=1&ssl=require"),
    ],
)
def test_libpq_addresses_are_understood(given: str, wanted: str) -> None:
    assert driver_url(given) == wanted
