"""Datasets, jobs and models name the key that made them, as far as the audit tells; keys name the first of those that
were rotated into them.
"""

import sqlalchemy as sa
from alembic import op

revision = "20261123_key_quotas"
down_revision = "20261122_operations"
branch_labels = None
depends_on = None

_MADE = {"datasets": "dataset.created", "jobs": "job.submitted"}


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("keys", schema=None) as batch_op:
        batch_op.add_column(sa.Column("lineage", sa.String(), nullable=True))
    op.execute("UPDATE keys SET lineage = id")
    with op.batch_alter_table("keys", schema=None) as batch_op:
        batch_op.alter_column("lineage", existing_type=sa.String(), nullable=False)

    for table in ("datasets", "jobs", "models"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column("key_lineage", sa.String(), nullable=True))
    for table, action in _MADE.items():
        op.execute(
            f"UPDATE {table} SET key_lineage = (SELECT min(audit.key_id) FROM audit WHERE audit.project_id = "
            f"{table}.project_id AND audit.target = {table}.id AND audit.action = '{action}')"
        )
    op.execute("UPDATE models SET key_lineage = (SELECT jobs.key_lineage FROM jobs WHERE jobs.id = models.job_id)")


def downgrade() -> None:
    """Undo."""
    for table in ("models", "jobs", "datasets"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column("key_lineage")
    with op.batch_alter_table("keys", schema=None) as batch_op:
        batch_op.drop_column("lineage")
