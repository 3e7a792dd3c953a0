"""Row A1: the database, with the migrations that run as soon as it is there."""

from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from ai_core.degradation import POSTGRES, classify
from ai_core.outbound.engine import POOL_SIZE, create_engine
from ai_core.outbound.postgres import PostgresAgents
from ai_core.ports import StoreDisconnected
from ai_core.settings import Settings
from resilience import RowPolicy
from service_kit.migrations import Migrator
from service_kit.runtime import ServiceRuntime

MIGRATIONS = Path(__file__).parents[1] / "migrations"


class PostgresPart:
    """Everything that is plugged into PostgreSQL."""

    def __init__(self, runtime: ServiceRuntime, settings: Settings) -> None:
        url = settings.database_url or ""
        self.engine: AsyncEngine = create_engine(url)
        self.agents = PostgresAgents(self.engine)
        self.policy: RowPolicy = runtime.policy(
            POSTGRES,
            classify=classify,
            probe=self.agents.ping,
            bulkhead_limit=POOL_SIZE,
            retries=1,
            retry_on=lambda error: isinstance(error, StoreDisconnected),
        )
        migrator = Migrator(url, MIGRATIONS, policy=self.policy, ping=self.agents.ping, clock=runtime.clock)
        runtime.background("migrations", migrator.run)
        runtime.on_close(self.engine.dispose, "postgres")
