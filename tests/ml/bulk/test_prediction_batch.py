"""A whole dataset answered: each row once, as the served model answers it, however often the work was interrupted."""

import errno
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml.artifact.description import ONNX
from ml.artifact.manifest import verify_folder
from ml.bulk.answers import CHUNK_TEXTS
from ml.bulk.prediction_batch import predict
from ml.bulk.report import ERRORS, OUTPUT
from ml.inference.backends import OnnxBackend
from ml.inference.classifier import OnnxClassifier
from ml.training.errors import ExitCode, StoppedError
from ml.training.run import RunDirectory
from tests.ml.bulk.runs import lay_out, read_lines, run_child
from tests.ml.conftest import Exported
from tests.ml.runs import flip_a_bit, read_events
from tests.tiny_base import learnable_rows

ROWS = 3 * CHUNK_TEXTS + 100
GAPS = (1, CHUNK_TEXTS, ROWS - 1)  # places of rows without a text


def with_gaps() -> list[tuple[str, str]]:
    return [("  " if place in GAPS else text, label) for place, (text, label) in enumerate(learnable_rows(ROWS))]


def lay_out_batch(folder: Path, exported: Exported, rows: Any = None, **named: Any) -> RunDirectory:
    return lay_out(folder, "prediction_batch", exported, rows or with_gaps(), **named)


def carry_out(run: RunDirectory) -> dict[str, bytes]:
    """Both files, after a run that nobody stops."""
    run.write_result(predict(run, run.read_placement(), lambda: False))
    return contents(run)


def contents(run: RunDirectory) -> dict[str, bytes]:
    return {name: (run.output / name).read_bytes() for name in (OUTPUT, ERRORS)}


@pytest.fixture(scope="module")
def finished(exported_full: Exported, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A batch that was never interrupted."""
    run = lay_out_batch(tmp_path_factory.mktemp("finished"), exported_full)
    carry_out(run)
    return run


@pytest.mark.parametrize("name", ["exported_full", "exported_frozen"])
def test_a_row_is_answered_as_a_prediction_is(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    exported: Exported = request.getfixturevalue(name)
    run = lay_out_batch(tmp_path, exported, learnable_rows(40))
    carry_out(run)
    classifier = OnnxClassifier(exported.artifact, exported.runtime, OnnxBackend(exported.runtime / ONNX, 1))
    lines = read_lines(run.output / OUTPUT)
    for number, ((text, _), line) in enumerate(zip(learnable_rows(40), lines, strict=True), 1):
        (expected,) = classifier.task.decode(classifier.logits(classifier.tokenize([text])))
        assert (line["row"], line["label"], set(line)) == (number, expected["label"], {"row", *expected})
        assert line["scores"] == pytest.approx(expected["scores"], abs=1e-5)


def test_a_row_without_a_text_is_told_of_and_costs_no_other_its_answer(finished: RunDirectory) -> None:
    refused = read_lines(finished.output / ERRORS)
    assert [(line["row"], line["code"]) for line in refused] == [(place + 1, "empty_text") for place in GAPS]
    assert "'text' is empty" in refused[0]["message"]
    answered = [line["row"] for line in read_lines(finished.output / OUTPUT)]
    assert answered == [place + 1 for place in range(ROWS) if place not in GAPS]
    result = json.loads((finished.path / "result.json").read_text())
    assert result["request_counts"] == {"total": ROWS, "completed": ROWS - 3, "failed": 3}
    assert result["files"] == verify_folder(finished.output)["files"]
    told = {"step": ROWS, "steps": ROWS, "eta_seconds": 0.0, "request_counts": result["request_counts"]}
    assert read_events(finished, "progress")[-1]["data"] == told


def test_a_pair_needs_both_of_its_texts(exported_full: Exported, tmp_path: Path) -> None:
    rows = [("my parcel", "is late"), ("my parcel", ""), ("", "is late")]
    run = lay_out_batch(tmp_path, exported_full, rows, headers=("sentence1", "sentence2"))
    carry_out(run)
    assert [line["row"] for line in read_lines(run.output / OUTPUT)] == [1]
    assert [line["message"].split("'")[1] for line in read_lines(run.output / ERRORS)] == ["sentence2", "sentence1"]


def test_a_text_that_was_cut_says_so_also_where_the_work_was_taken_up_again(
    exported_full: Exported, tmp_path: Path
) -> None:
    rows = list(learnable_rows(CHUNK_TEXTS + 2))
    for place in (1, CHUNK_TEXTS + 1):
        rows[place] = (" ".join(["parcel"] * 200), rows[place][1])
    run = lay_out_batch(tmp_path, exported_full, rows)
    asked = itertools.count()
    with pytest.raises(StoppedError):
        predict(run, run.read_placement(), lambda: next(asked) > 0)
    carry_out(run)
    lines = read_lines(run.output / OUTPUT)
    assert [line["row"] for line in lines if line.get("truncated")] == [2, CHUNK_TEXTS + 2]


def test_a_batch_that_is_stopped_after_each_chunk_ends_with_the_same_bytes(
    exported_full: Exported, tmp_path: Path, finished: RunDirectory
) -> None:
    run = lay_out_batch(tmp_path, exported_full)
    for chunk in range(1, 4):
        asked = itertools.count()
        with pytest.raises(StoppedError):
            predict(run, run.read_placement(), lambda asked=asked: next(asked) > 0)  # type: ignore[misc]
        done = chunk * CHUNK_TEXTS
        assert read_events(run, "checkpoint")[-1]["data"]["step"] == done
        failed = sum(place < done for place in GAPS)
        so_far = {"total": ROWS, "completed": done - failed, "failed": failed}
        assert read_events(run, "progress")[-1]["data"]["request_counts"] == so_far
    assert carry_out(run) == contents(finished)
    resumed = [event["data"]["step"] for event in read_events(run, "status")]
    assert resumed == [CHUNK_TEXTS, 2 * CHUNK_TEXTS, 3 * CHUNK_TEXTS]


def test_a_child_that_is_killed_half_way_goes_on_to_the_same_bytes_without_torch(
    exported_full: Exported, tmp_path: Path, finished: RunDirectory
) -> None:
    run = lay_out_batch(tmp_path / "run", exported_full, checkpoint_every_seconds=0)
    crash = tmp_path / "crash"
    crash.write_text("checkpoint.after_rename")
    assert run_child(run, MINIMAND_CRASH_FILE=crash) == -9
    assert not run.output.exists()
    assert run_child(run) == ExitCode.DONE
    assert contents(run) == contents(finished)
    (resumed,) = read_events(run, "status")
    assert resumed["data"]["step"] == CHUNK_TEXTS
    assert len(list(run.checkpoints.glob("step-*"))) == 2


def test_a_checkpoint_of_another_model_is_of_no_use(
    exported_full: Exported, exported_frozen: Exported, tmp_path: Path, finished: RunDirectory
) -> None:
    run = lay_out_batch(tmp_path, exported_frozen, model="mdl_2", checkpoint_every_seconds=0)
    carry_out(run)
    assert carry_out(lay_out_batch(tmp_path, exported_full)) == contents(finished)
    assert "beginning anew" in read_events(run, "message")[-2]["message"]


def test_a_model_that_is_damaged_answers_nothing(exported_full: Exported, tmp_path: Path) -> None:
    run = lay_out_batch(tmp_path / "run", exported_full, learnable_rows(4))
    damaged = tmp_path / "damaged"
    shutil.copytree(exported_full.artifact, damaged)
    flip_a_bit(damaged / ONNX)
    placement = run.read_placement().model_copy(update={"model": (damaged, damaged)})
    (run.path / "run.json").write_text(placement.model_dump_json())
    assert run_child(run) == ExitCode.BAD_INPUT
    error = json.loads((run.path / "error.json").read_text())
    assert (error["code"], ONNX in error["message"]) == ("model_unfit", True)


def test_a_checkpoint_that_finds_no_room_is_left_out(
    exported_full: Exported, tmp_path: Path, finished: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_file: Path, _array: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = lay_out_batch(tmp_path, exported_full, checkpoint_every_seconds=0)
    monkeypatch.setattr(np, "save", fail)
    assert carry_out(run) == contents(finished)
    assert "there is no room on the disk for checkpoint" in read_events(run, "message")[0]["message"]
    assert read_events(run, "checkpoint") == []
