"""A run directory: what a run is told, and what it tells."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from ml.data.rows import read_columns
from ml.specs.errors import SpecError
from ml.specs.job import JobSpec
from ml.training.run import Placement, RunDirectory
from tests.ml.runs import lay_out, prepare_run, read_events
from tests.tiny_base import learnable_rows, write_csv


@pytest.mark.parametrize("content", [None, b"", b"{'dataset'", b"\xff\xfe"])
def test_a_spec_that_cannot_be_read_is_a_bad_spec_not_a_crash(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "spec.json").write_bytes(content)
    with pytest.raises(SpecError, match=r"spec\.json cannot be read"):
        RunDirectory(tmp_path).read_spec(JobSpec)


@pytest.mark.parametrize("spec", [[], "minilm", {"dataset": "ds_1", "los": "focal"}])
def test_a_spec_of_another_shape_is_a_bad_spec(tmp_path: Path, tiny_base: Path, spec: object) -> None:
    run = lay_out(tmp_path)
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(SpecError):
        prepare_run(run, tiny_base)


def test_data_brought_by_hand_is_normalised_once(tmp_path: Path) -> None:
    rows = learnable_rows(9)
    write_csv(tmp_path / "data.csv", rows)
    facts = RunDirectory(tmp_path).read_facts()
    assert (facts.rows, facts.labels) == (9, {"delivery": 3, "other": 3, "refund": 3})
    assert read_columns(tmp_path / "rows.parquet", ["label", "text"]) == {
        "text": [text for text, _ in rows],
        "label": [label for _, label in rows],
    }
    (tmp_path / "data.csv").unlink()
    assert RunDirectory(tmp_path).read_facts() == facts


def test_a_directory_without_data_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"facts\.json"):
        RunDirectory(tmp_path).read_facts()


def test_a_run_by_hand_needs_no_placement(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path).read_placement() == Placement()
    (tmp_path / "run.json").write_text('{"threads": 2, "base_models": {"tiny": "/models/tiny"}}')
    assert RunDirectory(tmp_path).read_placement() == Placement(threads=2, base_models={"tiny": Path("/models/tiny")})
    (tmp_path / "run.json").write_text('{"thread": 2}')
    with pytest.raises(ValidationError, match="thread"):
        RunDirectory(tmp_path).read_placement()


def test_events_are_one_json_object_a_line_in_the_order_told(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.tell("message", "first\nline 猫")
    run.tell("metrics", "second", {"step": 1}, level="warning")
    first, second = read_events(run)
    assert (first["type"], first["level"], first["message"], first["data"]) == ("message", "info", "first\nline 猫", {})
    assert (second["type"], second["level"], second["data"]) == ("metrics", "warning", {"step": 1})
    assert first["created_at"] <= second["created_at"]


def test_a_failure_is_written_as_the_error_a_job_shows(tmp_path: Path) -> None:
    RunDirectory(tmp_path).fail("invalid_spec", "gamma is -1.", "/loss/gamma")
    assert json.loads((tmp_path / "error.json").read_text()) == {
        "message": "gamma is -1.",
        "type": "job_error",
        "param": "/loss/gamma",
        "code": "invalid_spec",
    }
