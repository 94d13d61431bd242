"""What can be limited."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Amount = Annotated[int, Field(ge=1, le=10**15)]


class Rates(BaseModel):
    """How often calls may come. null: no limit here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: Amount | None = Field(None, description="Calls other than predictions.")
    predictions_per_minute: Amount | None = Field(None, description="Calls of POST /v1/predictions.")


class Limits(Rates):
    """What all keys of a project may ask for together. null: no limit here, beside the server's own."""

    upload_bytes_per_day: Amount | None = Field(None, description="Bytes of uploads, as sent.")
    live_jobs: Amount | None = Field(None, description="Jobs of every kind that have not ended.")
    stored_bytes: Amount | None = Field(None, description="Bytes of datasets and models.")
