"""The kinds of component: what to run, how to tell that it accepts work, how to ask it to stop."""

from devstack.components.base import Component
from devstack.components.kafka import Kafka
from devstack.components.postgres import Postgres
from devstack.components.providers import Providers
from devstack.components.proxy import FaultProxy
from devstack.components.service import Service
from devstack.components.standby import Standby
from devstack.components.turn import Turn
from devstack.components.valkey import Valkey

__all__ = ["Component", "FaultProxy", "Kafka", "Postgres", "Providers", "Service", "Standby", "Turn", "Valkey"]
