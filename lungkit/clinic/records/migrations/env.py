"""What Alembic runs to take a connection, which maintenance.upgrade gives, through the steps."""

from alembic import context

from lungkit.clinic.records.tables import Base

# The transaction is the caller's.
context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
