"""A model's body and report say how it is served."""

from typing import Any

import pytest

from app.db.tables import ModelRow
from app.models.schemas import ModelBody, ModelReport

AGREEMENT = {"texts": 1000, "changed": 0.003, "moved": 0.002, "labelled": 500, "metric": "macro_f1", "fall": 0.001}
INT8 = {"format": "onnx-int8", "reason": "it answers as float32 does", "agreement": AGREEMENT, "float32_layers": ["a"]}


def row(**description: Any) -> ModelRow:
    return ModelRow(
        id="mdl_1",
        name="m",
        job_id="job_1",
        bytes=1,
        created_at=0.0,
        extra={},
        description={
            "task": {"type": "text_classification", "labels": ["a", "b"]},
            "takes_pairs": False,
            "base_model": "minilm",
            "spec": {"loss": {"type": "cross_entropy"}},
            "metrics": {},
            "report": {},
            **description,
        },
    )


@pytest.mark.parametrize("body", [ModelBody, ModelReport])
def test_the_chosen_format_is_shown_with_its_figures(body: type[ModelBody | ModelReport]) -> None:
    assert body.of(row(serving=INT8)).serving.model_dump() == INT8
