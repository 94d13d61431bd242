"""What the commands share: options, settings, a database that is opened, and a sentence where something cannot be."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from app.db.session import Database
    from app.settings import Settings
    from app.storage import FileStore

Command = TypeVar("Command", bound=Callable[..., Any])


def home_option(command: Command) -> Command:
    """The option --home."""
    return click.option(
        "--home", type=click.Path(file_okay=False, path_type=Path), help="Folder of all state (MINIMAND_HOME)."
    )(command)


def load_settings(home: Path | None = None, port: int | None = None) -> "Settings":
    """Settings from the environment; an option overrides its variable, for this process and for all it starts."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from app.settings import Settings

    if home is not None:
        os.environ["MINIMAND_HOME"] = str(home)
    if port is not None:
        os.environ["MINIMAND_PORT"] = str(port)
    try:
        return Settings()
    except ValidationError as error:
        for problem in error.errors():
            click.echo(_describe_problem(problem["loc"], problem["msg"], problem["input"]), err=True)
    except SettingsError as error:
        # Raised for a value that should be JSON and isn't; only its text tells which one.
        found = re.search(r'field "(\w+)"', str(error))
        click.echo(f"{variable_of(found[1]) if found else 'A setting'} isn't valid JSON.", err=True)
    sys.exit(2)


def _describe_problem(location: tuple[int | str, ...], message: str, value: object) -> str:
    # The value of a URL may hold a password, and one that is wrong may hide it where no pattern looks.
    is_secret = str(location[0]).endswith("_url")
    shown = "" if is_secret else f" (it is {value!r})"
    return f"{variable_of(str(location[0]))} is not usable: {message[:1].lower()}{message[1:]}{shown}."


def variable_of(field_name: str) -> str:
    """The environment variable of a setting."""
    return f"MINIMAND_{field_name.upper()}"


def fail(message: str) -> NoReturn:
    """End the command with a sentence."""
    click.echo(message, err=True)
    sys.exit(1)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """End with a sentence, not a stack trace, where the database is not as it must be."""
    from sqlalchemy.exc import OperationalError

    from app.db.migrate import SchemaError
    from app.errors import UnavailableError

    try:
        yield
    except SchemaError as error:
        fail(str(error))
    except (OperationalError, UnavailableError) as error:
        fail(f"The database cannot be used now: {getattr(error.__cause__, 'orig', None) or error.__cause__ or error}")


@contextlib.contextmanager
def opened(settings: "Settings") -> "Iterator[tuple[Database, FileStore]]":
    """The database, whose schema must be the present one, and the file store."""
    from app.db.migrate import require_current
    from app.db.session import Database

    with explained():
        database = Database(settings.resolved_database_url)
        try:
            require_current(database)
            yield database, open_store(settings)
        finally:
            database.close()


def open_store(settings: "Settings") -> "FileStore":
    """The file store of the settings."""
    from app.storage import FileStore

    return FileStore(settings.resolved_storage_url, settings.home.resolve() / "cache")
