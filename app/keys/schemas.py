"""Bodies of keys."""

import time
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from app.db.tables import KeyRow
from app.keys.caller import Scope
from app.limits.schemas import Limits

_DAY_SECONDS = 86_400
_ID = "key_019a8f3c2b7e5f0a1b2c3d4e5f60718"

Name = Annotated[str, Field(min_length=1, max_length=200, description="For people.", examples=["support-frontend"])]


class KeyRequest(BaseModel):
    """What a new key may do, and for how long."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name
    scopes: list[Scope] = Field(
        min_length=1,
        max_length=5,
        description="`datasets`: upload, read and delete datasets. `jobs`: jobs, comparisons, evaluations, prediction "
        "batches, models and aliases. `predict`: predictions. `metrics`: GET /metrics, for keys of the first project. "
        "`admin`: all of these, and keys and the audit.",
    )
    limits: Limits = Field(
        default=Limits(), description="Of what this key and those it is rotated into use, beside its project's."
    )
    expires_in_days: float | None = Field(None, gt=0, le=3_650, description="null: it lives until it is revoked.")

    @field_validator("scopes")
    @classmethod
    def _each_once(cls, scopes: list[Scope]) -> list[Scope]:
        if len(set(scopes)) < len(scopes):
            raise ValueError("a scope is named twice; name each once")
        return scopes

    def expires_at(self) -> float | None:
        """In unix seconds."""
        return None if self.expires_in_days is None else time.time() + self.expires_in_days * _DAY_SECONDS


class RotationRequest(BaseModel):
    """How long the old secret is to work beside the new one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    overlap_seconds: int = Field(
        _DAY_SECONDS, ge=0, le=30 * _DAY_SECONDS, description="Time to hand the new secret out; 0 ends the old at once."
    )


class Key(BaseModel):
    """An API key, without its secret."""

    id: str = Field(examples=[_ID])
    object: Literal["key"] = "key"
    project: str = Field(examples=["proj_default"])
    name: str
    hint: str = Field(description="How the secret begins.", examples=["mk_68ac8f"])
    scopes: list[str]
    limits: Limits
    created_at: float
    expires_at: float | None
    last_used_at: float | None = Field(description="Known to about a minute.")
    revoked_at: float | None

    @classmethod
    def of(cls, row: KeyRow) -> "Key":
        """The body of a row."""
        return cls(
            id=row.id,
            project=row.project_id,
            name=row.name,
            hint=row.hint,
            scopes=row.scopes,
            limits=Limits(**row.limits),
            created_at=row.created_at,
            expires_at=row.expires_at,
            last_used_at=row.last_used_at,
            revoked_at=row.revoked_at,
        )


class NewKey(Key):
    """A key that was just made: the only reply that holds its secret."""

    secret: str | None = Field(
        description="Shown this once: here only its digest is kept. null in the reply to a repeated Idempotency-Key.",
        examples=["mk_68ac8f0b1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e6f7a8b9c"],
    )

    @classmethod
    def made(cls, row: KeyRow, secret: str | None) -> "NewKey":
        """The body of a row and its secret."""
        return cls(**Key.of(row).model_dump(), secret=secret)
