"""Bodies of predictions."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

MAX_TEXTS = 1024
MAX_TEXT_CHARACTERS = 100_000
# Each word is a row for the model.
MAX_EXPLAINED_TEXTS, MAX_EXPLAINED_WORDS = 16, 512

TextInput = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]


class TextPair(BaseModel):
    """Two texts that belong together."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: TextInput = Field(description="The first, e.g. a question.")
    text_pair: TextInput = Field(description="The second, e.g. its answer.")


class Windows(BaseModel):
    """How texts longer than the model's max_length are read whole."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pooling: Literal["mean", "max"] = Field(
        "mean",
        description="The answer is made of each score's mean or maximum over the windows. Maxima of one-label tasks do "
        "not add up to 1. Of a regression, the outputs are pooled.",
    )
    overlap: int = Field(0, ge=0, description="Tokens that neighbouring windows share; the last two may share more.")


class PredictionRequest(BaseModel):
    """What to classify, and with which model."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
    )

    model: str = Field(min_length=1, max_length=200, description="A model's id, or an alias.")
    input: TextInput | TextPair | list[TextInput | TextPair] = Field(
        description=f"One text, one pair, or a list of up to {MAX_TEXTS} of them. The whole body may have 1 MB, unless "
        "the operator has set another limit."
    )

    top_k: int | None = Field(None, ge=1, description="So many of the highest in `scores`, the highest first.")
    labels: list[str] | None = Field(
        None, min_length=1, description="Only these labels in `scores`. The answer may be another."
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="multi_label: labels with at least this score are given, whatever was fitted."
    )
    raw: bool | None = Field(
        None, description="Also give what the network put out, before calibration and activation, by name."
    )
    abstain_below: FiniteFloat | None = Field(
        None,
        description="An answer whose `score` is below this has null for its label or labels, and `abstained`. That is "
        "the score of the answered label, and of multi_label the highest score.",
    )

    windows: Windows | None = Field(
        None,
        description="Read a text longer than the model's max_length in windows of that many tokens, the last of which "
        f"ends with the text; without it, the text is cut. Up to {MAX_TEXTS} windows a call; no pairs.",
    )

    explain: bool | None = Field(
        None,
        description="Also say what each word adds to the answer: each is left out in turn. "
        f"Up to {MAX_EXPLAINED_TEXTS} texts and {MAX_EXPLAINED_WORDS} words a call; not with `windows`.",
    )

    @property
    def has_options(self) -> bool:
        """Whether more than a model and texts was given."""
        return len(self.model_fields_set) > 2


class WordEffect(BaseModel):
    """What one word adds to an answer."""

    word: str
    part: Literal["text", "text_pair"] = Field(description="Which text of a pair it is in; `text` of a single one.")
    start: int = Field(description="In characters of that text.")
    end: int
    effect: float = Field(description="The score, or the value of a regression, less what it is without the word.")


class Explanation(BaseModel):
    """What an answer rests on."""

    label: str | None = Field(description="Whose score is explained: the answered or highest; null of a regression.")
    words: list[WordEffect] = Field(description="As the tokenizer splits them, in their order; none that was cut off.")


class Result(BaseModel):
    """What an answer to one text may hold in every task."""

    truncated: Literal[True] | None = Field(
        None, description="There where the text is longer than the model's max_length: the rest of it was not read."
    )
    windows: int | None = Field(None, description="Where `windows` was asked: how many the text was read in.")
    explanation: Explanation | None = Field(None, description="Where `explain` was asked.")
    raw: dict[str, float] | None = Field(
        None,
        description="Where `raw` was asked: what the network put out, by label; by level passed (`> level`) or as "
        "`rank` of an order learned by one; by part of the value, standardised, of a regression.",
    )


class LabelResult(Result):
    """The answer to one text of a task with one label."""

    label: str | None = Field(description="null only where it abstained.")
    score: float = Field(description="Of the label: a probability, unless the loss gives scores.")
    scores: dict[str, float] = Field(description="Of every label, or of those that `labels` and `top_k` ask for.")
    abstained: Literal[True] | None = Field(None, description="There where `score` is below `abstain_below`.")


class LabelsResult(Result):
    """The answer to one text of a task with any number of labels."""

    labels: list[str] | None = Field(
        description="Those whose score passes its threshold; null only where it abstained."
    )
    score: float = Field(description="The highest.")
    scores: dict[str, float] = Field(description="Of every label, or of those that `labels` and `top_k` ask for.")
    abstained: Literal[True] | None = Field(None, description="There where `score` is below `abstain_below`.")


class ValueResult(Result):
    """The answer to one text of a regression."""

    value: float
    standard_deviation: float | None = Field(None, description="Where the loss learns one.")
    quantiles: dict[str, float] | None = Field(None, description="Where the loss learns them.")


class Timings(BaseModel):
    """Where the time went, in milliseconds."""

    queue: float = Field(description="Waiting for the model, before and between its passes.")
    tokenize: float
    inference: float = Field(description="In passes through the model, which the texts of other calls may share.")
    cached: int | None = Field(
        None, description="No time, but how many rows the answer cache knew, where there is one: texts, windows, words."
    )


class Prediction(BaseModel):
    """The answers, in the order of the input."""

    id: str = Field(examples=["pred_019a8f3c2b7e5f0a1b2c3d4e5f60718"])
    object: Literal["prediction"] = "prediction"
    model: str = Field(description="Id of the model that answered, also where an alias was asked.")
    results: list[LabelResult | LabelsResult | ValueResult]
    timings_ms: Timings
