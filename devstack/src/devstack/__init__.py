"""The platform as processes on real servers, with a fault proxy on every edge: for development, demonstrations and tests."""

from devstack.stack import ChaosError, Healed, NotReady, Stack
from devstack.topology import Topology

__all__ = ["ChaosError", "Healed", "NotReady", "Stack", "Topology"]
