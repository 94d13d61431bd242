"""Bodies of projects."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.db.tables import ProjectRow
from app.keys.schemas import Name, NewKey
from app.limits.schemas import Limits


class ProjectRequest(BaseModel):
    """A new project."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name
    limits: Limits = Field(
        default=Limits(), description="Where they differ from the server's own; what is left out is the server's."
    )


class ProjectChange(BaseModel):
    """What is to be otherwise; what is left out stays."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name | None = None
    limits: Limits | None = Field(
        None, description="All of its limits anew; null for one: no limit, whatever the server's own says."
    )


class Project(BaseModel):
    """A project: its datasets, jobs, models, aliases and keys are seen by its own keys alone."""

    id: str = Field(examples=["proj_019a8f3c2b7e5f0a1b2c3d4e5f60718"])
    object: Literal["project"] = "project"
    name: str
    limits: dict[str, int | None] = Field(description="Where they differ from the server's own.")
    created_at: float

    @classmethod
    def of(cls, row: ProjectRow) -> "Project":
        """The body of a row."""
        return cls(id=row.id, name=row.name, limits=row.limits, created_at=row.created_at)


class NewProject(Project):
    """A project that was just made, with its first key."""

    key: NewKey | None = Field(
        description="With the scope `admin`: hand it to who is to run the project. null in the reply to a repeated "
        "Idempotency-Key."
    )
