"""Bodies of base models."""

from typing import Literal

from pydantic import BaseModel, Field


class BaseModelBody(BaseModel):
    """An encoder that a job may start from."""

    id: str = Field(description="What a job spec names in `model`.")
    object: Literal["base_model"] = "base_model"
    model_type: str = Field(description="Its architecture, as its config says.")
    hidden_size: int
    layers: int
    heads: int = Field(description="Of attention.")
    dropout: float | None = Field(description="The greatest probability its config names, or null.")
    max_length: int = Field(description="Most tokens it can read.")
    vocabulary: int
    parameters: int
    linear_layers: list[str] = Field(description="What `target_modules` of a tuning may name, in each of its layers.")
