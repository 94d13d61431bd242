"""The common parent of every spec class: strict, closed, finite, and of text that every database can hold."""

from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, field_validator, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


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
                field = str(unknown[0])
                context = {"field": field, "known": known, "elsewhere": _places_below(cls).get(field, [])}
                raise PydanticCustomError("unknown_field", "unknown field '{field}'", context)
        return value

    @field_validator("*")
    @classmethod
    def _refuse_null_characters(cls, value: Any) -> Any:
        return refuse_null_characters(value)


@cache
def _places_below(cls: type[BaseModel]) -> dict[str, list[str]]:
    """Where below a class its objects have a field, as high as there is one: learning_rate in training.optimizer."""
    places: dict[str, list[str]] = {}
    level: list[tuple[str, type[BaseModel]]] = [("", cls)]
    seen = {cls}  # a class may hold others of its own kind
    while level:
        level = [
            (f"{path}.{name}".strip("."), member)
            for path, one in level
            for name, info in one.model_fields.items()
            for member in _classes_in(info.annotation)
            if member not in seen
        ]
        seen |= {member for _, member in level}
        found: dict[str, list[str]] = {}
        for path, one in level:
            for name in one.model_fields:
                if path not in found.setdefault(name, []):
                    found[name].append(path)
        places = found | places
    return places


def _classes_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The classes of the objects that an annotation allows, in lists too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _classes_in(argument)


def refuse_null_characters(value: Any) -> Any:
    """A text, or a list or dict of texts, as it is. SQLite would store U+0000, and PostgreSQL cannot."""
    texts = [value, *(value if isinstance(value, list | dict) else ())]
    texts += value.values() if isinstance(value, dict) else ()
    if any(isinstance(text, str) and "\x00" in text for text in texts):
        raise ValueError("the character U+0000 cannot be stored. Remove it.")
    return value


class OfType:
    """Stands in an annotation of objects told apart by their `type`: a bare name is an object of that type, as
    "focal" for {"type": "focal"}; and an object without a type is of the usual one, where there is one.
    """

    def __init__(self, usual: str | None = None, *, allows_bare_names: bool = True) -> None:
        self._usual = usual
        self._allows_bare_names = allows_bare_names

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Spell it out first."""
        return core_schema.no_info_before_validator_function(self._spell_out, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """What may be written."""
        spelled_out = handler(schema)
        objects = {name: {"$ref": ref} for name, ref in spelled_out["discriminator"]["mapping"].items()}
        written = [spelled_out]
        if self._allows_bare_names:
            whole = [name for name, ref in objects.items() if handler.resolve_ref_schema(ref)["required"] == ["type"]]
            written.append({"type": "string", "enum": whole, "description": "The type alone; all else by default."})
        if self._usual is not None:
            usual = handler.resolve_ref_schema(objects[self._usual])
            named = [name for name in usual["properties"] if name != "type"]
            fields = {name: usual["properties"][name] for name in named}
            description = f"Without a type: {self._usual}."
            written.append(
                {"type": "object", "properties": fields, "additionalProperties": False, "description": description}
            )
        return {"anyOf": written}

    def _spell_out(self, value: Any) -> Any:
        if self._allows_bare_names and isinstance(value, str):
            return {"type": value}
        return {"type": self._usual, **value} if self._usual is not None and isinstance(value, dict) else value
