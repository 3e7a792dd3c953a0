"""The platform as processes on real servers, with a fault proxy on every edge: for development, demos and tests.

The names are imported when they are first used: the fault proxy and the commands are parts of this package that
must start quickly and need none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devstack.errors import ChaosError, NotReadyError
    from devstack.stack import Healed, Stack
    from devstack.topology import Topology

__all__ = ["ChaosError", "Healed", "NotReadyError", "Stack", "Topology"]

_HOMES = {
    "ChaosError": "devstack.errors",
    "Healed": "devstack.stack",
    "NotReadyError": "devstack.errors",
    "Stack": "devstack.stack",
    "Topology": "devstack.topology",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(name)
    return getattr(import_module(_HOMES[name]), name)
