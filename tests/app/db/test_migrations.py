"""The migrations, on SQLite and on PostgreSQL."""

import subprocess
import sys
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Connection, MetaData, Table, func, insert, select, text
from sqlalchemy.exc import IntegrityError

import migrations
from app.db.migrate import SchemaError, downgrade, head_revision, migrating, require_current, upgrade
from app.db.session import Database
from app.db.tables import Base


def _differences(database_url: str) -> list[Any]:
    with migrating(database_url) as connection:
        return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))


def _tables(connection: Connection) -> list[Table]:
    """The tables as the database has them, parents first."""
    found = MetaData()
    found.reflect(connection)
    return [table for table in found.sorted_tables if table.name != "alembic_version"]


def _fill(database_url: str) -> None:
    """Put a row into every empty table. All texts are equal, so every foreign key finds its parent."""
    with migrating(database_url) as connection:
        for table in _tables(connection):
            if not connection.scalar(select(func.count()).select_from(table)):
                connection.execute(insert(table).values({column.name: _value(column) for column in table.columns}))


def _value(column: Any) -> object:
    return {} if isinstance(column.type, JSON) else column.type.python_type("1")


def _counts(database_url: str) -> dict[str, int | None]:
    with migrating(database_url) as connection:
        return {table.name: connection.scalar(select(func.count()).select_from(table)) for table in _tables(connection)}


def _revisions() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", migrations.__path__[0])
    return ScriptDirectory.from_config(config)


def test_an_empty_database_becomes_what_the_tables_say(database_url: str) -> None:
    done = upgrade(database_url)
    assert (done.before, done.after) == (None, head_revision())
    assert _differences(database_url) == []
    assert set(_counts(database_url)) == set(Base.metadata.tables)


def test_alembic_check_finds_nothing_to_add(database_url: str) -> None:
    upgrade(database_url)
    with migrating(database_url) as connection:
        config = Config()
        config.set_main_option("script_location", migrations.__path__[0])
        config.attributes["connection"] = connection
        command.check(config)


def test_upgrading_twice_changes_nothing(database_url: str) -> None:
    upgrade(database_url)
    _fill(database_url)
    done = upgrade(database_url)
    assert done.before == done.after
    assert set(_counts(database_url).values()) == {1}


def test_every_revision_goes_down_and_up_again_with_rows_present(database_url: str) -> None:
    upgrade(database_url)
    for revision in _revisions().walk_revisions():
        _fill(database_url)
        downgrade(database_url, str(revision.down_revision or "base"))
        upgrade(database_url)
        assert _differences(database_url) == []
    downgrade(database_url, "base")
    assert _counts(database_url) == {}


def test_a_key_from_before_scopes_opens_everything_and_a_later_one_only_what_it_says(database_url: str) -> None:
    upgrade(database_url)
    downgrade(database_url, "20261122_initial")
    _fill(database_url)
    upgrade(database_url)
    columns = "id, lineage, project_id, name, secret_sha256, hint, limits, created_at"
    with migrating(database_url) as connection:
        (scopes,) = connection.scalars(select(next(t for t in _tables(connection) if t.name == "keys").c.scopes))
    assert scopes == ["admin"]
    with pytest.raises(IntegrityError, match="scopes"), migrating(database_url) as connection:
        connection.execute(text(f"INSERT INTO keys ({columns}) VALUES ('2', '2', '1', 'k', '2', '', '{{}}', 0)"))


def test_what_was_made_before_quotas_of_keys_names_the_key_that_the_audit_tells_of(database_url: str) -> None:
    upgrade(database_url)
    downgrade(database_url, "20261122_operations")
    _fill(database_url)
    with migrating(database_url) as connection:
        connection.execute(text("UPDATE audit SET key_id = 'key_a', action = 'job.submitted'"))
    upgrade(database_url)
    with migrating(database_url) as connection:
        found = {
            table.name: connection.scalar(select(table.c.key_lineage))
            for table in _tables(connection)
            if "key_lineage" in table.c
        }
        assert connection.scalar(text("SELECT lineage FROM keys")) == connection.scalar(text("SELECT id FROM keys"))
    assert found == {"datasets": None, "jobs": "key_a", "models": "key_a"}


def test_there_is_one_line_of_revisions() -> None:
    assert len(_revisions().get_heads()) == 1


def test_processes_that_migrate_at_once_all_succeed_and_one_does_the_work(database_url: str) -> None:
    code = "import sys; from app.db.migrate import upgrade; print(upgrade(sys.argv[1]).before)"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, database_url], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert said == [head_revision(), head_revision(), "None"]
    assert _differences(database_url) == []


def test_current_schema_is_accepted(database_url: str) -> None:
    upgrade(database_url)
    database = Database(database_url)
    require_current(database)
    database.close()


def test_older_schema_is_refused_with_the_command_to_run(database_url: str) -> None:
    database = Database(database_url)
    with pytest.raises(SchemaError, match=r"needs \w+\. Run `minimand migrate`"):
        require_current(database)
    database.close()


def test_newer_schema_is_refused(database_url: str) -> None:
    upgrade(database_url)
    database = Database(database_url)
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '99991231_later'"))
    with pytest.raises(SchemaError, match=r"99991231_later.*a newer version has migrated it"):
        require_current(database)
    with pytest.raises(SchemaError, match="a newer version has migrated it"):
        upgrade(database_url)
    database.close()


def test_a_migration_that_fails_leaves_nothing_behind(database_url: str) -> None:
    with pytest.raises(ZeroDivisionError), migrating(database_url) as connection:
        connection.execute(text("CREATE TABLE half_done (id INTEGER)"))
        raise ZeroDivisionError
    assert _counts(database_url) == {}


def test_copying_a_parent_table_on_sqlite_keeps_the_rows_of_its_children(sqlite_database_url: str) -> None:
    upgrade(sqlite_database_url)
    _fill(sqlite_database_url)
    with migrating(sqlite_database_url) as connection:
        operations = Operations(MigrationContext.configure(connection))
        with operations.batch_alter_table("jobs", recreate="always"):
            pass
    assert set(_counts(sqlite_database_url).values()) == {1}


def test_a_migration_on_sqlite_that_breaks_a_reference_is_undone(sqlite_database_url: str) -> None:
    upgrade(sqlite_database_url)
    _fill(sqlite_database_url)
    with pytest.raises(SchemaError, match="point nowhere"), migrating(sqlite_database_url) as connection:
        connection.execute(text("DELETE FROM projects"))
    assert set(_counts(sqlite_database_url).values()) == {1}
