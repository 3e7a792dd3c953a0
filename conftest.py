"""Imports the installed package before pytest meets the folder of the same name, which it would take for a package."""

import devstack  # noqa: F401
