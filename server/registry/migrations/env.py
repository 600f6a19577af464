"""What alembic runs: the revisions, inside the transaction of the connection that it is given."""

from __future__ import annotations

from alembic import context

from server.registry.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
