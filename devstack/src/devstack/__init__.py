"""The platform as processes on real servers, with a fault proxy on every edge: for development, demos and tests."""

from devstack.stack import ChaosError, Healed, NotReadyError, Stack
from devstack.topology import Topology

__all__ = ["ChaosError", "Healed", "NotReadyError", "Stack", "Topology"]
