"""Bodies of aliases."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.db.tables import AliasChangeRow, AliasRow

_NAME, _MODEL = "production", "mdl_019a8f3c2b7e5f0a1b2c3d4e5f60718"


class AliasRequest(BaseModel):
    """What an alias is to stand for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(
        min_length=1, max_length=200, description="A model's id, or another alias: what that stands for just now."
    )


class Alias(BaseModel):
    """A name that stands for a model, wherever a request takes a model's id."""

    id: str = Field(examples=["als_019a8f3c2b7e5f0a1b2c3d4e5f60718"])
    object: Literal["alias"] = "alias"
    name: str = Field(examples=[_NAME])
    model: str = Field(examples=[_MODEL])
    created_at: float
    changed_at: float

    @classmethod
    def of(cls, row: AliasRow) -> "Alias":
        """The body of a row."""
        return cls(id=row.id, name=row.name, model=row.model_id, created_at=row.created_at, changed_at=row.changed_at)


class AliasChange(BaseModel):
    """What an alias came to stand for, when, and by whom."""

    id: str = Field(examples=["alc_019a8f3c2b7e5f0a1b2c3d4e5f60718"])
    object: Literal["alias.change"] = "alias.change"
    name: str = Field(examples=[_NAME])
    model: str | None = Field(examples=[_MODEL], description="null: the alias was deleted.")
    key: str = Field(description="Id of the API key that asked for it.")
    created_at: float

    @classmethod
    def of(cls, row: AliasChangeRow) -> "AliasChange":
        """The body of a row."""
        return cls(id=row.id, name=row.name, model=row.model_id, key=row.key_id, created_at=row.created_at)
