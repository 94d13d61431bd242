"""Bodies of the audit."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.db.tables import AuditRow


class Change(BaseModel):
    """One change of the project, and whose key asked for it."""

    id: str = Field(examples=["aud_019a8f3c2b7e5f0a1b2c3d4e5f60718"])
    object: Literal["audit.change"] = "audit.change"
    key: str = Field(description="Id of the API key; `operator` for the command line.")
    action: str = Field(examples=["job.cancelled"])
    target: str = Field(description="Id of what was changed, or an alias's name.", examples=["job_019a8f3c2b7e5f0a"])
    data: dict[str, Any] = Field(description="What else is worth knowing, by action.")
    created_at: float

    @classmethod
    def of(cls, row: AuditRow) -> "Change":
        """The body of a row."""
        return cls(
            id=row.id,
            key=row.key_id,
            action=row.action,
            target=row.target,
            data=row.data,
            created_at=row.created_at,
        )
