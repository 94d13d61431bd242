"""Projects take turns: when a job of each was last claimed, and its oldest job by an index."""

import sqlalchemy as sa
from alembic import op

revision = "20261124_turns"
down_revision = "20261123_key_quotas"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("projects", schema=None) as batch_op:
        batch_op.add_column(sa.Column("claimed_at", sa.Double(), nullable=True))
    op.create_index("ix_jobs_turn", "jobs", ["status", "queue", "project_id", "created_at", "id"])


def downgrade() -> None:
    """Undo."""
    op.drop_index("ix_jobs_turn", "jobs")
    with op.batch_alter_table("projects", schema=None) as batch_op:
        batch_op.drop_column("claimed_at")
