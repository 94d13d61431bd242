"""Compiled steps: as good as plain ones, over few lengths, and gone when the weights are kept.

Graphs are taken by torch's compiler and run as they are: making machine code of them takes it minutes.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.utils import counters

from ml.models.outputs import Outputs
from ml.specs.errors import SpecError
from ml.training import compiled
from ml.training.errors import StoppedError
from tests.ml.runs import fit_run, lay_out, prepare_run, series, stop_after
from tests.tiny_base import make_tiny_base


class Pooled(nn.Module):
    """A network that is compiled in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4)

    def forward(self, *, input_ids: Tensor) -> Outputs:
        vectors = self.words(input_ids).mean(1)
        return Outputs(vectors, vectors)


@pytest.fixture(autouse=True)
def graphs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()


def test_each_length_is_compiled_once_however_many_rows_come() -> None:
    network: Any = Pooled()
    fast = compiled.CompiledNetwork(network)
    for rows, length in [(8, 16), (7, 16), (8, 24), (1, 16), (3, 24), (2, 16), (1, 24)]:
        ids = torch.randint(10, (rows, length))
        torch.testing.assert_close(fast(input_ids=ids).logits, network(input_ids=ids).logits)
    assert counters["stats"]["unique_graphs"] == 2


def test_a_worker_that_cannot_compile_names_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_a_compiler(*_: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(compiled, "BACKEND", without_a_compiler)
    network: Any = Pooled()
    with pytest.raises(SpecError, match=r"No working C\+\+ compiler found.*leave 'compile' out") as caught:
        compiled.CompiledNetwork(network)(input_ids=torch.ones(2, 3, dtype=torch.int64))
    assert caught.value.problems[0].pointer == "/training/compile"


def test_a_compiled_run_learns_the_same_and_its_checkpoint_is_of_the_plain_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml.training.fit.LENGTHS", 1)
    base = make_tiny_base(tmp_path / "base", layers=1)
    runs = [lay_out(tmp_path / str(on), training={"compile": on, "dropout": 0.0, "epochs": 1}) for on in (False, True)]
    prepared = [prepare_run(run, base) for run in runs]
    fit_run(runs[0], prepared[0])
    with pytest.raises(StoppedError):
        fit_run(runs[1], prepared[1], stop_after(runs[1], 2))
    kept = load_file(runs[1].checkpoints / "step-00000002" / "model.safetensors")
    weights = prepared[0].network.state_dict()
    assert set(kept) == set(weights)
    fit_run(runs[1], prepared[1])
    assert series(runs[1], "train/loss") == pytest.approx(series(runs[0], "train/loss"), rel=1e-5)
    torch.testing.assert_close(prepared[1].network.state_dict(), weights, rtol=0, atol=1e-3)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]
