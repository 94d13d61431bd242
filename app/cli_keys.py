"""`minimand keys` and `minimand projects`: the operator's hand on both, at the machine and without a key."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.console import Command, fail, home_option, load_settings, opened
from app.keys.caller import FIRST_PROJECT, operator_of

if TYPE_CHECKING:
    from app.keys.caller import Caller
    from app.keys.service import KeyService


@click.group()
def keys() -> None:
    """Make, list, replace and revoke API keys."""


def _project_option(command: Command) -> Command:
    return click.option(
        "--project", default=FIRST_PROJECT, show_default=True, metavar="NAME", help="A project's id or name."
    )(command)


@keys.command("create")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, help="datasets, jobs, predict, metrics or admin.")
@click.option("--days", type=float, help="How long it lives; without it, until it is revoked.")
@_project_option
@home_option
def create_key(name: str, scopes: tuple[str, ...], days: float | None, project: str, home: Path | None) -> None:
    """Make a key called NAME, and print its secret, which is kept nowhere."""
    from app.keys.schemas import KeyRequest

    with _keys_of(project, home) as (service, operator):
        asked = KeyRequest.model_validate({"name": name, "scopes": list(scopes), "expires_in_days": days})
        row, secret = service.create(operator, asked, None)
    click.echo(f"{row.id}\n{secret}")


@keys.command("list")
@_project_option
@home_option
def list_keys(project: str, home: Path | None) -> None:
    """Print the project's keys, the newest first."""
    from app.http.pagination import PageRequest

    with _keys_of(project, home) as (service, operator):
        after, has_more = None, True
        while has_more:
            rows, has_more = service.list_page(operator.project_id, PageRequest(after=after, limit=100))
            for row in rows:
                state = "revoked" if row.revoked_at else f"last used {_shown_time(row.last_used_at)}"
                end = f", until {_shown_time(row.expires_at)}" if row.expires_at else ""
                click.echo(f"{row.id}  {row.hint}…  {','.join(row.scopes):<12}  {row.name}: {state}{end}")
                after = row.id


@keys.command("rotate")
@click.argument("key_id")
@click.option("--overlap", default=86_400, show_default=True, help="Seconds for which the old secret still works.")
@_project_option
@home_option
def rotate_key(key_id: str, overlap: int, project: str, home: Path | None) -> None:
    """Make a key like KEY_ID in its place, and print its secret."""
    from app.keys.schemas import RotationRequest

    with _keys_of(project, home) as (service, operator):
        row, secret = service.rotate(operator, key_id, RotationRequest(overlap_seconds=overlap))
    click.echo(f"{row.id}\n{secret}")


@keys.command("revoke")
@click.argument("key_id")
@_project_option
@home_option
def revoke_key(key_id: str, project: str, home: Path | None) -> None:
    """Let KEY_ID open nothing any more, within 2 seconds."""
    with _keys_of(project, home) as (service, operator):
        service.revoke(operator, key_id)
    click.echo(f"{key_id} is revoked.")


@click.group()
def projects() -> None:
    """Make and list projects: each sees nothing of the others."""


@projects.command("create")
@click.argument("name")
@home_option
def create_project(name: str, home: Path | None) -> None:
    """Make a project called NAME with an admin key, and print that key's secret."""
    from app.projects.schemas import ProjectRequest
    from app.projects.service import ProjectService

    with _refused(), opened(load_settings(home)) as (database, _):
        asked = ProjectRequest.model_validate({"name": name})
        row, _key, secret = ProjectService(database).create(operator_of(FIRST_PROJECT), asked, None)
    click.echo(f"{row.id}\n{secret}")


@projects.command("list")
@home_option
def list_projects(home: Path | None) -> None:
    """Print all projects."""
    from app.http.pagination import PageRequest
    from app.projects.service import ProjectService

    with opened(load_settings(home)) as (database, _):
        after, has_more = None, True
        while has_more:
            page = PageRequest(after=after, limit=100, order="asc")
            rows, has_more = ProjectService(database).list_page(operator_of(FIRST_PROJECT), page)
            for row in rows:
                click.echo(f"{row.id}  {row.name}")
                after = row.id


@contextlib.contextmanager
def _keys_of(project: str, home: Path | None) -> "Iterator[tuple[KeyService, Caller]]":
    """The keys, and the operator's hand on the project of this id or name."""
    from app.keys import repository
    from app.keys.service import KeyService

    with _refused(), opened(load_settings(home)) as (database, _):
        with database.read() as session:
            row = repository.find_project(session, project)
            found = [row] if row else repository.find_projects_named(session, project)
        if not found:
            fail(f"There is no project '{project}'. `minimand projects list` prints them.")
        if len(found) > 1:
            ids = ", ".join(row.id for row in found)
            fail(f"{len(found)} projects are called '{project}': say which by its id, of {ids}.")
        yield KeyService(database), operator_of(found[0].id)


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """End with a sentence where what was asked for cannot be."""
    from pydantic import ValidationError

    from app.errors import ServiceError

    try:
        yield
    except ServiceError as error:
        fail(str(error))
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"{'.'.join(map(str, first['loc']))}: {first['msg']}, and {first['input']!r} came.")


def _shown_time(at: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if at else "never"
