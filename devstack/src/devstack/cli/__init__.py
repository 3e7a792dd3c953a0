"""The `auralink` command."""

from devstack.cli.app import main

__all__ = ["main"]
