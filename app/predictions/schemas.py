"""Bodies of predictions."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_TEXTS = 1024
MAX_TEXT_CHARACTERS = 100_000

TextInput = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]


class TextPair(BaseModel):
    """Two texts that belong together."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: TextInput
    text_pair: TextInput


class PredictionRequest(BaseModel):
    """What to classify, and with which model."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {"model": "mdl_019a8f3c2b7e5f0a1b2c3d4e5f60718", "input": "Where is my parcel?"},
                {"model": "production", "input": ["Where is my parcel?", "I want a refund."]},
            ]
        },
    )

    model: str = Field(min_length=1, max_length=200, description="A model's id, or an alias.")
    input: TextInput | TextPair | list[TextInput | TextPair] = Field(
        description=f"One text, one pair, or a list of up to {MAX_TEXTS} of them."
    )


class LabelResult(BaseModel):
    """The answer to one text of a task with one label."""

    label: str
    score: float = Field(description="Of the label: a probability, unless the loss gives scores.")
    scores: dict[str, float] = Field(description="Of every label.")


class LabelsResult(BaseModel):
    """The answer to one text of a task with any number of labels."""

    labels: list[str] = Field(description="Those whose score passes its threshold.")
    score: float = Field(description="The highest.")
    scores: dict[str, float] = Field(description="Of every label.")


class ValueResult(BaseModel):
    """The answer to one text of a regression."""

    value: float
    standard_deviation: float | None = Field(None, description="Where the loss learns one.")
    quantiles: dict[str, float] | None = Field(None, description="Where the loss learns them.")


class Timings(BaseModel):
    """Where the time went, in milliseconds."""

    queue: float = Field(description="Waiting for the model, before and between its passes.")
    tokenize: float
    inference: float = Field(description="In passes through the model, which the texts of other calls may share.")


class Prediction(BaseModel):
    """The answers, in the order of the input."""

    id: str = Field(examples=["pred_019a8f3c2b7e5f0a1b2c3d4e5f60718"])
    object: Literal["prediction"] = "prediction"
    model: str = Field(description="Id of the model that answered, also where an alias was asked.")
    results: list[LabelResult | LabelsResult | ValueResult]
    timings_ms: Timings
