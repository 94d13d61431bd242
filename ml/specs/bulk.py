"""What a model is put to over a whole dataset: the bodies of `POST /v1/prediction_batches` and `POST /v1/evaluations`.

It knows what is asked; what fits a model and a dataset is `ml.bulk.checks`' to say.
"""

from pydantic import ConfigDict, Field

from ml.specs.base import Spec
from ml.specs.job import Metadata


class Bulk(Spec):
    """A model and a dataset."""

    name: str = Field("", max_length=200)
    model: str = Field(min_length=1, max_length=200, description="Id of a model.")
    dataset: str = Field(min_length=1, max_length=200, description="Id of a dataset.")
    checkpoint_every_seconds: float = Field(
        60, ge=0, le=86_400, description="At least so long apart are the points that an interrupted job goes on from."
    )
    metadata: Metadata = Field(default_factory=dict)


class PredictionBatch(Bulk):
    """Answers for every row of a dataset."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "mdl_019a8f3c2b7e5f0a1b2c3d4e5f60718", "dataset": "ds_019a8f3c2b7e5f0a1b2c3d4e5f60718"}
            ]
        }
    )
