"""What is known of a dataset and of a base model before training. Names of columns are recognised here.

It knows no file: `ml.data.ingest` and `ml.bases` fill it in.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ml.specs.errors import did_you_mean, refuse

Role = Literal["text", "text_pair", "label", "group", "split"]

# The first name that stands in the header wins. group is only ever named by the user.
RECOGNISED: dict[Role, tuple[str, ...]] = {
    "text": ("text", "sentence", "sentence1", "premise", "content", "review"),
    "text_pair": ("text_pair", "sentence2", "hypothesis"),
    "label": ("label", "labels", "class", "category", "target", "score", "rating"),
    "split": ("split",),
}
SPLIT_NAMES = {"train": "train", "validation": "validation", "dev": "validation", "test": "test"}


class Columns(BaseModel):
    """Which header plays which role."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    text_pair: str | None = None
    label: str | None = None
    group: str | None = None
    split: str | None = None


class DatasetFacts(BaseModel):
    """What parsing found. Row numbers count data rows from 1."""

    rows: int
    headers: list[str]
    columns: Columns
    recognised: list[Role]  # roles found by name; the others were given
    empty_texts: int  # rows whose text is missing or blank
    first_empty_text: int | None
    missing_labels: int
    first_missing_label: int | None
    labels: dict[str, int]  # label -> rows, most frequent first; empty when there are more than MAX_LABELS
    distinct_labels: int
    splits: dict[str, int]  # train, validation, test -> rows; empty without a split column
    text_characters: int  # of all texts together, pairs included


class BaseFacts(BaseModel):
    """What is known of a base model before it is loaded."""

    model_config = ConfigDict(frozen=True)

    name: str
    model_type: str
    hidden_size: int
    layers: int
    heads: int
    dropout: float | None  # the greatest its config names; None where it names none
    max_length: int
    vocabulary: int
    parameters: int
    mask_id: int | None  # of the tokenizer's mask token; None where it has none
    linear_layers: tuple[str, ...]  # names within one of its layers; none where its layers can't be told apart

    @property
    def parts(self) -> list[str]:
        """What of it can be frozen by name."""
        return ["embeddings", *(f"layer.{number}" for number in range(self.layers if self.linear_layers else 0))]


MAX_LABELS = 10_000


def recognise_columns(headers: Sequence[str], given: dict[str, str]) -> tuple[Columns, list[Role]]:
    """Give each role its header: the given one, else the first recognised name.

    Returns the columns and the roles that were recognised by name. Raises SpecError with the pointer
    `/columns/{role}` for a role or a header that isn't there, or when no text column is found.
    """
    known: tuple[Role, ...] = ("text", "text_pair", "label", "group", "split")
    found: dict[str, str] = {}
    recognised: list[Role] = []
    for role, header in given.items():
        if role not in known:
            raise refuse(
                f"/columns/{role}",
                f"unknown role '{role}'.{did_you_mean(role, known)} Roles: {', '.join(known)}.",
                "unknown_field",
            )
        if header not in headers:
            raise refuse(
                f"/columns/{role}",
                f"there is no column '{header}'.{did_you_mean(header, headers)} Columns: {', '.join(headers)}.",
                "unknown_column",
            )
        if header in found.values():
            raise refuse(f"/columns/{role}", f"column '{header}' has two roles; give it one.", "duplicate_column")
        found[role] = header
    lower = {header.strip().lower(): header for header in reversed(headers)}
    for role, names in RECOGNISED.items():
        match = next((lower[name] for name in names if name in lower and lower[name] not in found.values()), None)
        if role not in found and match is not None:
            found[role] = match
            recognised.append(role)
    if "text" not in found:
        raise refuse(
            "/columns/text",
            f"no column is named {', '.join(RECOGNISED['text'])}. Say which holds the text, "
            f'e.g. columns={{"text": "{headers[0]}"}}. Columns: {", ".join(headers)}.',
            "missing_column",
        )
    return Columns.model_validate(found), recognised
