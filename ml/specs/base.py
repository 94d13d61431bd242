"""The common parent of every spec class: strict, closed, finite."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Spec(BaseModel):
    """Unknown keys, NaN, infinities and numbers written as strings are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, serialize_by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_fields(cls, value: Any) -> Any:
        # pydantic's own error doesn't say which fields there are.
        if isinstance(value, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            if unknown := [name for name in value if name not in known]:
                context = {"field": str(unknown[0]), "known": known}
                raise PydanticCustomError("unknown_field", "unknown field '{field}'", context)
        return value


def spell_out(value: Any) -> Any:
    """A bare name stands for an object of that type: "focal" for {"type": "focal"}."""
    return {"type": value} if isinstance(value, str) else value
