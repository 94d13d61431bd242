"""Keys have scopes, limits and an end, projects have limits, and changes are noted. Keys from before open everything."""

import sqlalchemy as sa
from alembic import op

revision = '20261122_keys_and_audit'
down_revision = '20261122_initial'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table('audit',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('project_id', sa.String(), nullable=False),
    sa.Column('key_id', sa.String(), nullable=False),
    sa.Column('action', sa.String(), nullable=False),
    sa.Column('target', sa.String(), nullable=False),
    sa.Column('data', sa.JSON(), nullable=False),
    sa.Column('created_at', sa.Double(), nullable=False),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_audit_project_id_projects')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_audit'))
    )
    with op.batch_alter_table('audit', schema=None) as batch_op:
        batch_op.create_index('ix_audit_project', ['project_id', 'id'], unique=False)
        batch_op.create_index('ix_audit_target', ['project_id', 'target'], unique=False)

    with op.batch_alter_table('keys', schema=None) as batch_op:
        batch_op.add_column(sa.Column('hint', sa.String(), nullable=False, server_default=''))
        batch_op.add_column(sa.Column('scopes', sa.JSON(), nullable=False, server_default='["admin"]'))
        batch_op.add_column(sa.Column('limits', sa.JSON(), nullable=False, server_default='{}'))
        batch_op.add_column(sa.Column('expires_at', sa.Double(), nullable=True))
        batch_op.add_column(sa.Column('last_used_at', sa.Double(), nullable=True))
        batch_op.add_column(sa.Column('idempotency_key', sa.String(), nullable=True))
        batch_op.add_column(sa.Column('request_sha256', sa.String(), nullable=True))
        batch_op.create_index(batch_op.f('ix_keys_project_id'), ['project_id'], unique=False)
        batch_op.create_unique_constraint(batch_op.f('uq_keys_idempotency_key'), ['idempotency_key'])

    # A key that is added later and says no scopes must be refused, not open everything.
    with op.batch_alter_table('keys', schema=None) as batch_op:
        batch_op.alter_column('scopes', existing_type=sa.JSON(), existing_nullable=False, server_default=None)

    with op.batch_alter_table('projects', schema=None) as batch_op:
        batch_op.add_column(sa.Column('limits', sa.JSON(), nullable=False, server_default='{}'))
        batch_op.add_column(sa.Column('idempotency_key', sa.String(), nullable=True))
        batch_op.add_column(sa.Column('request_sha256', sa.String(), nullable=True))
        batch_op.create_unique_constraint(batch_op.f('uq_projects_idempotency_key'), ['idempotency_key'])



def downgrade() -> None:
    """Undo."""
    with op.batch_alter_table('projects', schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f('uq_projects_idempotency_key'), type_='unique')
        batch_op.drop_column('request_sha256')
        batch_op.drop_column('idempotency_key')
        batch_op.drop_column('limits')

    with op.batch_alter_table('keys', schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f('uq_keys_idempotency_key'), type_='unique')
        batch_op.drop_index(batch_op.f('ix_keys_project_id'))
        batch_op.drop_column('request_sha256')
        batch_op.drop_column('idempotency_key')
        batch_op.drop_column('last_used_at')
        batch_op.drop_column('expires_at')
        batch_op.drop_column('limits')
        batch_op.drop_column('scopes')
        batch_op.drop_column('hint')

    with op.batch_alter_table('audit', schema=None) as batch_op:
        batch_op.drop_index('ix_audit_target')
        batch_op.drop_index('ix_audit_project')

    op.drop_table('audit')
