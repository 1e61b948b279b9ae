"""What Alembic runs to take a connection, which upkeep.upgrade gives, through the steps."""

from alembic import context

from lungkit.clinic.tables import Base

# SQLite can undo changes of tables too; Alembic just does not count on it.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
