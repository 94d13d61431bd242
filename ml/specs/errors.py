"""What is wrong with a spec, said so that its author can mend it: where (a JSON pointer), what came, what is allowed.

It knows pydantic's errors and nothing of HTTP.
"""

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

# Nobody reads more, and a body of a megabyte can have as many as it has keys.
MOST_EXPLAINED = 100


@dataclass(frozen=True)
class Problem:
    """One thing wrong, and where it stands."""

    pointer: str
    message: str
    code: str = "invalid_value"


class SpecError(ValueError):
    """A spec that cannot be carried out. The first problem is the one to mend first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{p.pointer}: {p.message}" for p in problems))
        self.problems = tuple(problems)


def refuse(pointer: str, message: str, code: str = "invalid_value") -> SpecError:
    """A SpecError with one problem."""
    return SpecError([Problem(pointer, message, code)])


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for a near miss, else an empty string."""
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def pointer(path: Iterable[object]) -> str:
    """A JSON pointer (RFC 6901) for a path of keys and indices."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def show(value: object) -> str:
    """A value as its author wrote it, cut to a readable length."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    text = text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair cannot be sent back
    return text if len(text) <= 80 else text[:77] + "…"


def quoted(labels: Sequence[str], most: int = 10) -> str:
    """Labels in quotes, the first few."""
    shown = ", ".join(f"'{label}'" for label in labels[:most])
    return shown if len(labels) <= most else f"{shown} and {len(labels) - most} more"


def explain(errors: Sequence[Any], body: object) -> list[Problem]:
    """Turn pydantic's errors over `body` into problems with pointers into that body."""
    problems: dict[str, Problem] = {}
    for error in errors[:MOST_EXPLAINED]:
        path, value = _find(body, error["loc"], is_missing=error["type"] == "missing")
        # A shorthand is a bare string in the body, whatever pydantic was given: then the string itself is meant.
        if error["type"] == "union_tag_invalid" and isinstance(value, dict):
            path.append(error["ctx"]["discriminator"].strip("'"))
        if error["type"] == "unknown_field":
            path.append(error["ctx"]["field"])
        problem = Problem(pointer(path), _sentence(error, path), _code(error["type"]))
        problems.setdefault(problem.pointer, problem)
    # Of a union pydantic reports every member that did not fit: the one that fitted deepest was meant.
    above = {place for pointer in problems for place in _above(pointer)}
    return [problem for problem in problems.values() if problem.pointer not in above]


def _above(pointer: str) -> Iterator[str]:
    """Every place that holds this one."""
    while pointer:
        pointer = pointer.rpartition("/")[0]
        yield pointer


def explain_validation(error: ValidationError, body: object) -> SpecError:
    """The same for a ValidationError."""
    return SpecError(explain(error.errors(include_url=False), body))


def _find(body: object, location: Sequence[object], *, is_missing: bool) -> tuple[list[object], object]:
    """A location's path in the body and the value there.

    What isn't in the body is dropped: pydantic names union members and validators in a location too.
    """
    path: list[object] = []
    here: Any = body
    for index, step in enumerate(location):
        in_list = isinstance(here, list) and isinstance(step, int) and step < len(here)
        if in_list or (isinstance(here, dict) and step in here):
            here = here[step]
            path.append(step)
        elif is_missing and isinstance(here, dict) and index == len(location) - 1:
            path.append(step)
    return path, here


def _code(kind: str) -> str:
    return {
        "unknown_field": "unknown_field",
        "extra_forbidden": "unknown_field",
        "missing": "missing_field",
        "union_tag_invalid": "unknown_type",
        "json_invalid": "invalid_json",
    }.get(kind, "invalid_value")


def _sentence(error: Any, path: list[object]) -> str:
    kind, context, came = error["type"], error.get("ctx", {}), error.get("input")
    name = str(path[-1]) if path else "the body"
    if path and isinstance(path[-1], int):
        name = f"item {path[-1]} of {path[-2] if len(path) > 1 else 'the body'}"
    if kind == "unknown_field":
        known, elsewhere = context["known"], context["elsewhere"]
        hint = f" It is a field of {' and of '.join(elsewhere)}." if elsewhere else did_you_mean(name, known)
        return f"unknown field '{name}'.{hint} Fields: {', '.join(known)}."
    if kind == "extra_forbidden":
        return f"unknown field '{name}'. Remove it, or see the schema of this object in /docs."
    if kind == "missing":
        missing = error["loc"][-1] if error["loc"] else name  # a shorthand has no place for it in the body
        return f"'{missing}' is required and missing."
    if kind == "union_tag_invalid":
        known = [tag.strip().strip("'") for tag in str(context.get("expected_tags", "")).split(",")]
        tag = context.get("tag")
        what = next((str(step) for step in reversed(path) if isinstance(step, str) and step != "type"), "type")
        return f"unknown {what} '{tag}'.{did_you_mean(tag, known)} There are: {', '.join(known)}."
    if kind == "union_tag_not_found":
        return f"{name} needs a 'type'."
    if kind in {"less_than", "less_than_equal", "greater_than", "greater_than_equal"}:
        limit = next(iter(context.values()))
        words = {"less_than": "less than", "less_than_equal": "at most", "greater_than": "greater than"}
        return f"'{name}' is {show(came)}, and must be {words.get(kind, 'at least')} {limit}."
    if kind == "finite_number":
        return f"'{name}' is {show(came)}, and must be a finite number."
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    if kind == "literal_error":
        known = [part.strip().strip("'") for part in str(context["expected"]).replace(" or ", ", ").split(",")]
        return f"'{name}' is {show(came)}.{did_you_mean(came, known)} Allowed: {', '.join(known)}."
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return f"{name} is {show(came)}, and must be a JSON object."
    if kind == "json_invalid":
        return f"the body is not JSON: {context.get('error', error['msg'])}."
    message = str(error["msg"])
    return f"'{name}' is {show(came)}: {message[0].lower()}{message[1:]}."
