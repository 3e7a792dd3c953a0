"""Circuit breakers, deadlines, fallbacks and a durable write queue for asyncio services."""
