"""Alembic's entry: runs on the connection, and inside the transaction, that the caller opened."""

from alembic import context

from webrtc.outbound.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
