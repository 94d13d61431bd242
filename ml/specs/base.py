"""The common parent of every spec class: strict, closed, finite."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """Unknown keys, NaN, infinities and numbers written as strings are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
