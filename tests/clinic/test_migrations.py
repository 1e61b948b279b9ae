"""The steps that make the tables: on both databases, together or not at all, and never over what is newer."""

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from lungkit.clinic import tables


def test_the_steps_make_just_the_tables_that_the_program_uses(store):
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, tables.Base.metadata) == []
