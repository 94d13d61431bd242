"""/v1/projects."""

from typing import Annotated

from fastapi import APIRouter, Body, Response

from app.http.auth import Authenticated, needs
from app.http.examples import PROJECT_CHANGES, PROJECTS
from app.http.idempotency import IdempotencyKey
from app.http.pagination import NewestFirst, Page
from app.http.services import Wired
from app.keys.schemas import NewKey
from app.projects.schemas import NewProject, Project, ProjectChange, ProjectRequest

router = APIRouter(prefix="/v1/projects", tags=["keys and projects"], dependencies=[needs("admin")])


@router.post("", status_code=201, summary="Make a project")
def create_project(
    asked: Annotated[ProjectRequest, Body(openapi_examples=PROJECTS)],
    caller: Authenticated,
    services: Wired,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> NewProject:
    """A project with a first key of its own, for admin keys of the first project. Nothing crosses projects: what one
    holds is a 404 to the keys of another.
    """
    row, key, secret = services.projects.create(caller, asked, idempotency_key)
    response.headers["Location"] = f"/v1/projects/{row.id}"
    made = None if key is None else NewKey.made(key, secret)
    return NewProject(**Project.of(row).model_dump(), key=made)


@router.get("", summary="List projects")
def list_projects(caller: Authenticated, services: Wired, page: NewestFirst) -> Page[Project]:
    """All projects, for admin keys of the first one."""
    rows, has_more = services.projects.list_page(caller, page)
    return Page[Project].model_validate(page.page([Project.of(row) for row in rows], has_more=has_more))


@router.get("/{project_id:proj}", summary="Get a project")
def get_project(project_id: str, caller: Authenticated, services: Wired) -> Project:
    """A project and its limits."""
    return Project.of(services.projects.get(caller, project_id))


@router.patch("/{project_id:proj}", summary="Change a project")
def change_project(
    project_id: str,
    asked: Annotated[ProjectChange, Body(openapi_examples=PROJECT_CHANGES)],
    caller: Authenticated,
    services: Wired,
) -> Project:
    """Another name, or other limits. Every process keeps to them within 2 seconds."""
    return Project.of(services.projects.change(caller, project_id, asked))
