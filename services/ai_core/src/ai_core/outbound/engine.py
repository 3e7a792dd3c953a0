"""The connection pool to PostgreSQL (``service_kit.database``); an outage is ports.StoreUnavailable."""

from ai_core.ports import StoreDisconnected, StoreUnavailable
from service_kit.database import POOL_SIZE, Access, create_engine

__all__ = ["POOL_SIZE", "create_engine", "reading", "writing"]

_ACCESS = Access(StoreUnavailable, StoreDisconnected)
reading, writing = _ACCESS.reading, _ACCESS.writing
