"""A download holds the file that answers were given from, and says which that was."""

import zipfile
from pathlib import Path
from typing import Any

import pytest

from app.models.download import README, assemble
from ml.artifact.description import INT8, ONNX, Description, Probe, Serving, write_description
from ml.tasks.build import TaskState


@pytest.mark.parametrize(("served", "files"), [("onnx-int8", [ONNX, INT8]), ("onnx-float32", [ONNX])])
def test_the_served_file_is_in_it_beside_the_float32_one(served: Any, files: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    for name in files:
        (folder / name).write_text(name)
    state = TaskState(type="text_classification", reading="softmax", labels=["a", "b"])
    described = Description(
        task=state,
        max_length=8,
        pad_id=0,
        inputs=["input_ids"],
        base_model="tiny",
        base_sha256="0",
        head="native",
        loads_in_transformers=True,
        metrics={},
        report={},
        spec={},
        dataset_sha256=None,
        train_rows=1,
        versions={},
        probe=Probe(logits=[], tolerance=0.0),
        serving=Serving(format=served, reason="it does"),
    )
    write_description(folder, described)
    with zipfile.ZipFile(assemble(folder, folder, tmp_path / "model.zip")) as archive:
        assert set(files) == {name for name in archive.namelist() if name.endswith(".onnx")}
        assert ("the service answered from it" in archive.read(README).decode()) == (served == "onnx-int8")
