"""The common parent of every spec class: strict, closed, finite, and of text that every database can hold."""

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from pydantic_core import PydanticCustomError


class Spec(BaseModel):
    """Unknown keys, NaN, infinities, numbers written as strings and the character U+0000 are refused."""

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

    @field_validator("*")
    @classmethod
    def _refuse_null_characters(cls, value: Any) -> Any:
        return refuse_null_characters(value)


def refuse_null_characters(value: Any) -> Any:
    """A text, or a list or dict of texts, as it is. SQLite would store U+0000, and PostgreSQL cannot."""
    texts = [value, *(value if isinstance(value, list | dict) else ())]
    texts += value.values() if isinstance(value, dict) else ()
    if any(isinstance(text, str) and "\x00" in text for text in texts):
        raise ValueError("the character U+0000 cannot be stored. Remove it.")
    return value


def spell_out(value: Any) -> Any:
    """A bare name stands for an object of that type: "focal" for {"type": "focal"}."""
    return {"type": value} if isinstance(value, str) else value
