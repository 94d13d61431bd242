"""Alembic's entry: it runs revisions on the connection `app.db.migrate` gives it, inside that caller's transaction."""

from alembic import context

from app.db.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite cannot alter a column: Alembic copies the table instead.
    render_as_batch=True,
    compare_type=True,
)
context.run_migrations()
