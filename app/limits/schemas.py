"""What can be limited."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Amount = Annotated[int, Field(ge=1, le=10**15)]


class Limits(BaseModel):
    """What a key, or all keys of a project together, may ask for. null: no limit here."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    requests_per_minute: Amount | None = Field(None, description="Calls other than predictions.")
    predictions_per_minute: Amount | None = Field(None, description="Calls of POST /v1/predictions.")
    upload_bytes_per_day: Amount | None = Field(None, description="Bytes of uploads, as sent.")
    live_jobs: Amount | None = Field(None, description="Jobs of every kind that have not ended.")
    stored_bytes: Amount | None = Field(
        None,
        description="Bytes of datasets and models. The model that a job makes is never refused; what follows it is.",
    )
