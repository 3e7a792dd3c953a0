"""The kinds of component: what to run, how to tell that it accepts work, how to ask it to stop."""

from devstack.components.base import Component
from devstack.components.postgres import Postgres
from devstack.components.providers import Providers
from devstack.components.proxy import FaultProxy
from devstack.components.service import Service
from devstack.components.valkey import Valkey

__all__ = ["Component", "FaultProxy", "Postgres", "Providers", "Service", "Valkey"]
