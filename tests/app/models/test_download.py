"""A download holds the file that answers were given from, and says which that was."""

import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.models import download
from app.models.download import README, assemble
from ml.artifact.description import INT8, ONNX, Description, Probe, Serving, write_description
from ml.tasks.build import TaskState


def describe(served: Any, head: Any = "native") -> Description:
    state = TaskState(type="text_classification", reading="softmax", labels=["a", "b"])
    return Description(
        task=state,
        takes_pairs=False,
        max_length=8,
        pad_id=0,
        inputs=["input_ids"],
        base_model="tiny",
        base_sha256="0",
        head=head,
        loads_in_transformers=head == "native",
        metrics={},
        report={},
        spec={"tuning": {"type": "full" if head == "native" else "frozen"}},
        dataset_sha256=None,
        train_rows=1,
        versions={},
        probe=Probe(logits=[], tolerance=0.0),
        serving=Serving(format=served, reason="it does"),
    )


@pytest.mark.parametrize(("served", "files"), [("onnx-int8", [ONNX, INT8]), ("onnx-float32", [ONNX])])
def test_the_served_file_is_in_it_beside_the_float32_one(served: Any, files: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    for name in files:
        (folder / name).write_text(name)
    write_description(folder, describe(served))
    with zipfile.ZipFile(assemble(folder, folder, tmp_path / "model.zip")) as archive:
        assert set(files) == {name for name in archive.namelist() if name.endswith(".onnx")}
        assert ("the service answered from it" in archive.read(README).decode()) == (served == "onnx-int8")


@pytest.mark.parametrize(("served", "files"), [("onnx-int8", [ONNX, INT8]), ("onnx-float32", [ONNX])])
def test_a_head_is_joined_with_every_file_of_its_encoder_that_it_is_served_from(
    served: Any, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, base = tmp_path / "artifact", tmp_path / "base"
    artifact.mkdir()
    base.mkdir()
    for name in (ONNX, INT8, "manifest.json"):
        (base / name).write_text(name)
    write_description(artifact, describe(served, "linear"))

    def join(encoder: Path, _head: Path, target: Path, **_options: bool) -> None:
        target.write_text(f"{encoder.read_text()} and a head")

    tokenizer = SimpleNamespace(save=lambda file: Path(file).write_text("cut"))
    monkeypatch.setattr(download, "join_head", join)
    monkeypatch.setattr(download, "load_tokenizer", lambda *_: tokenizer)
    with zipfile.ZipFile(assemble(artifact, base, tmp_path / "model.zip")) as archive:
        joined = {name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".onnx")}
    assert joined == {name: f"{name} and a head" for name in files}
