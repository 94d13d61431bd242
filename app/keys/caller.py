"""Who calls, as every service is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Scope = Literal["datasets", "jobs", "predict", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

# The first project is who runs the server: its admin keys make projects.
FIRST_PROJECT = "proj_default"
OPERATOR = "operator"


@dataclass(frozen=True)
class Caller:
    """A key that opens a project, or the operator at the command line."""

    key_id: str
    lineage: str  # see KeyRow: what it uses is counted under this
    project_id: str
    scopes: frozenset[str]
    key_limits: Mapping[str, int | None] = field(default_factory=dict)  # those that are set; see app.limits.schemas
    project_limits: Mapping[str, int | None] = field(default_factory=dict)

    def may(self, scope: Scope) -> bool:
        """Whether the key has a scope; `admin` is all of them."""
        return scope in self.scopes or "admin" in self.scopes

    @property
    def is_operator(self) -> bool:
        """Whether the whole server is the caller's, not one project alone."""
        return self.project_id == FIRST_PROJECT


def operator_of(project_id: str) -> Caller:
    """Who works on a project by the command line."""
    return Caller(OPERATOR, OPERATOR, project_id, frozenset({"admin"}))
