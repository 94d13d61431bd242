"""Ours against other people's code: generate.py wrote the inputs, values and gradients that are compared with here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import LossContext, Targets
from ml.losses.registry import LOSSES, build_loss
from ml.models.outputs import Outputs
from ml.specs.losses.table import LOSS_SPECS

ORACLES = json.loads((Path(__file__).parent / "values.json").read_text())
CASES = [pytest.param(case, id=f"{case['loss']}-{case['oracle']}") for case in ORACLES["cases"]]
# Some of the libraries compute in float32, whatever they are given.
TOLERANCE = 1e-6


def _tensor(values: Any) -> Tensor:
    """Numbers as float64, class ids as int64."""
    tensor = torch.tensor(values)
    return tensor if tensor.dtype == torch.int64 else torch.tensor(values, dtype=torch.float64)


def _ours(case: dict[str, Any], point: Tensor) -> tuple[Tensor, Tensor]:
    spec = LOSS_SPECS[case["loss"]].model_validate({"type": case["loss"], **case["parameters"]})
    loss = build_loss(spec, LossContext(labels=list("abcd"), train_counts=dict.fromkeys("abcd", 1), train_rows=4))
    teacher = _tensor(case["teacher"]) if "teacher" in case else None
    targets = Targets(_tensor(case["labels"]), teacher=teacher)
    logits = point
    if "vectors" in case:  # a cosine head
        cosines = functional.linear(functional.normalize(point), functional.normalize(_tensor(case["vectors"])))
        logits = case["parameters"]["scale"] * cosines
    return loss.numerators(Outputs(logits, point), targets), loss.denominators(targets)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_other_library(case: dict[str, Any]):
    if case["loss"] not in LOSSES:
        pytest.skip(f"there is no loss {case['loss']}")
    point = _tensor(case["embeddings" if "embeddings" in case else "logits"]).requires_grad_()
    numerators, denominators = _ours(case, point)
    mean = numerators.sum() / denominators.sum()
    wanted = _tensor(case["value"])
    found = mean if wanted.ndim == 0 else numerators / denominators
    torch.testing.assert_close(found.detach(), wanted, rtol=TOLERANCE, atol=TOLERANCE)
    if case["gradient"] is not None:
        mean.backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(point.grad, _tensor(case["gradient"]), rtol=TOLERANCE, atol=TOLERANCE)


def test_no_library_was_missing():
    assert ORACLES["missing"] == {}
    assert len(ORACLES["versions"]) == 7
