"""Recommendations: the rules of the catalogue, each with its figures, and every loss recommended can be trained."""

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ml.data.ingest import ingest
from ml.data.report import IngestOptions
from ml.data.rows import read_columns
from ml.recommendation import Recommendation, recommend
from ml.resolve import METRICS, Resolved, needed_headers, resolve
from ml.specs.errors import SpecError
from ml.specs.facts import BaseFacts
from ml.specs.job import JobSpec
from tests.shared_data import SHARED_DATA
from tests.tiny_base import write_csv

BASE = BaseFacts(
    name="minilm",
    model_type="bert",
    hidden_size=384,
    layers=12,
    heads=12,
    dropout=0.1,
    mask_id=103,
    max_length=512,
    vocabulary=30_522,
    parameters=22_000_000,
    linear_layers=(),
)


class Data:
    """A dataset as the service holds it."""

    def __init__(self, folder: Path, source: Path, columns: dict[str, str] | None = None) -> None:
        parquet = folder / "rows.parquet"
        self.facts = ingest(source, parquet, IngestOptions(filename=source.name, columns=columns or {})).facts
        self.cells = read_columns(parquet, needed_headers(JobSpec(dataset="ds_1"), self.facts))

    def recommend(self, metric: str | None = None) -> Recommendation:
        """Of which both losses must resolve."""
        found = recommend(self.facts, BASE, self.cells, metric)
        assert found.reasons
        assert found.source
        assert all(found.source)
        assert found.alternative_reason
        assert found.alternative != found.loss
        json.dumps(found.evidence, allow_nan=False)
        for loss in (found.loss, found.alternative):
            assert self.resolve(found.task, loss).state.type == found.task
        return found

    def resolve(self, task: str, loss: dict[str, Any]) -> Resolved:
        spec = JobSpec.model_validate({"dataset": "ds_1", "task": {"type": task}, "loss": loss})
        return resolve(spec, self.facts, BASE, self.cells)


@pytest.fixture
def data_of(tmp_path: Path) -> Any:
    """Makes a dataset of label cells, with any further columns."""

    def make(labels: Sequence[str], *, columns: dict[str, str] | None = None, **more: Sequence[str]) -> Data:
        rows = [(f"text {i}", *cells) for i, cells in enumerate(zip(labels, *more.values(), strict=True))]
        return Data(tmp_path, write_csv(tmp_path / "data.csv", rows, ("text", "label", *more)), columns)

    return make


def repeat(**counts: int) -> list[str]:
    return [label for label, count in counts.items() for _ in range(count)]


def main_type(found: Recommendation) -> str:
    return str(found.loss["terms"][0]["loss"]["type"] if "terms" in found.loss else found.loss["type"])


def test_even_labels_need_nothing(data_of: Any) -> None:
    found = data_of(repeat(a=100, b=60)).recommend()
    assert (found.task, found.metric, found.loss) == ("text_classification", "macro_f1", {"type": "cross_entropy"})
    assert found.evidence["imbalance_ratio"] == pytest.approx(100 / 60)
    assert found.evidence["counts"] == {"a": 100, "b": 60}
    assert "a ratio of 1.7" in found.reasons[0]


def test_skewed_labels_are_weighed_for_macro_f1(data_of: Any) -> None:
    data = data_of(repeat(a=200, b=40))
    found = data.recommend()
    assert found.loss == {"type": "cross_entropy", "class_weights": {"scheme": "effective_number", "beta": 0.99}}
    assert any("Cui" in paper for paper in found.source)
    plain = data.recommend("accuracy")
    assert plain.loss == {"type": "cross_entropy"}
    assert plain.alternative == found.loss


@pytest.mark.parametrize(("rarest", "beta"), [(50, 0.99), (500, 0.999), (5000, 0.9999)])
def test_the_effective_number_tells_the_labels_apart(data_of: Any, rarest: int, beta: float) -> None:
    data = data_of(repeat(a=rarest * 5, b=rarest))
    found = data.recommend()
    assert found.loss["class_weights"]["beta"] == beta
    counts = data.resolve(found.task, found.loss).train_counts
    effective = {label: (1 - beta**rows) / (1 - beta) for label, rows in counts.items()}
    assert effective["a"] / effective["b"] > 1.5


def test_a_long_tail_is_adjusted_for(data_of: Any) -> None:
    found = data_of(repeat(a=300, b=25)).recommend()
    assert found.loss == {"type": "logit_adjusted", "tau": 1.0}
    assert found.alternative["type"] == "ldam"
    assert "a ratio of 12.0" in found.reasons[0]
    assert any("Menon" in paper for paper in found.source)


def test_a_long_tail_with_a_metric_over_rows_says_so(data_of: Any) -> None:
    found = data_of(repeat(a=300, b=25)).recommend("accuracy")
    assert found.loss["type"] == "logit_adjusted"
    assert any("accuracy counts every row the same" in reason for reason in found.reasons)


def test_a_tail_too_thin_to_adjust_for_is_weighed(data_of: Any) -> None:
    found = data_of(repeat(a=300, b=15)).recommend()
    assert found.loss["class_weights"]["scheme"] == "effective_number"
    assert any("logit_adjusted needs 20 rows" in reason for reason in found.reasons)


@pytest.mark.parametrize("counts", [{"a": 300, "b": 9}, {"a": 12, "b": 14, "c": 16}, {"a": 2, "b": 2}])
def test_few_rows_get_a_contrastive_term(data_of: Any, counts: dict[str, int]) -> None:
    found = data_of(repeat(**counts)).recommend()
    assert [term["loss"]["type"] for term in found.loss["terms"]] == ["cross_entropy", "supcon"]
    assert any("not there yet" in reason for reason in found.reasons)
    assert any("Tunstall" in paper for paper in found.source)


def test_a_label_that_no_training_row_has(data_of: Any) -> None:
    labels = [*repeat(a=100, b=100), *repeat(c=10)]
    split = ["train"] * 200 + ["test"] * 10
    found = data_of(labels, split=split).recommend()
    assert "terms" in found.loss
    assert found.evidence["counts"] == {"a": 100, "b": 100, "c": 0}
    assert found.evidence["imbalance_ratio"] is None
    assert "'c', has 0" in found.reasons[0]


def test_the_rows_counted_are_those_that_train(data_of: Any) -> None:
    labels = [*repeat(a=100, b=100), *repeat(a=1000)]
    found = data_of(labels, split=["train"] * 200 + ["test"] * 1000).recommend()
    assert found.evidence["rows"] == 200
    assert found.evidence["imbalance_ratio"] == 1


def test_ordered_numbers_are_levels_where_the_metric_counts_distance(data_of: Any) -> None:
    data = data_of(repeat(**{str(level): 40 for level in range(1, 6)}))
    assert data.recommend().task == "text_classification"
    for metric in ("mae", "qwk"):
        found = data.recommend(metric)
        assert (found.task, found.loss, found.alternative) == ("ordinal", {"type": "corn"}, {"type": "huber"})
    assert data.recommend("r2").task == "regression"


def test_half_stars_are_levels_too(data_of: Any) -> None:
    data = data_of(repeat(**{f"{level / 2}": 40 for level in range(1, 11)}))
    assert (data.recommend().task, data.recommend("rmse").task) == ("regression", "regression")
    for metric in ("mae", "qwk"):
        found = data.recommend(metric)
        assert (found.task, found.loss) == ("ordinal", {"type": "corn"})


def test_two_levels_are_no_order(data_of: Any) -> None:
    found = data_of(repeat(**{"0": 40, "1": 40})).recommend("mae")
    assert (found.task, found.loss) == ("ordinal", {"type": "cross_entropy"})


def test_more_levels_than_corn_is_for_are_numbers(data_of: Any) -> None:
    found = data_of([str(i % 30) for i in range(300)]).recommend("mae")
    assert (found.task, found.loss) == ("regression", {"type": "huber"})


def test_numbers_without_and_with_outliers(data_of: Any) -> None:
    numbers = [f"{i / 10:.1f}" for i in range(300)]
    calm = data_of(numbers).recommend()
    assert (calm.task, calm.metric, calm.loss) == ("regression", "rmse", {"type": "mse"})
    assert calm.evidence["outlier_share"] == 0
    wild = data_of([*numbers, *["9999.5"] * 6]).recommend()
    assert wild.loss == {"type": "huber"}
    assert wild.evidence["outlier_share"] == pytest.approx(6 / 306)
    assert "2.0%" in wild.reasons[0]


def test_several_labels_dense_and_sparse(data_of: Any) -> None:
    dense = data_of(['["a"]', '["b", "c"]', '["a", "c"]', "[]"] * 20).recommend()
    assert (dense.task, dense.loss, dense.alternative) == ("multi_label", {"type": "bce"}, {"type": "asl"})
    assert dense.evidence["density"] == pytest.approx(5 / 12)
    assert dense.evidence["share_of_rows_with_several_labels"] == 0.5
    assert dense.evidence["mean_labels_per_row"] == 1.25
    assert any("thresholds" in reason for reason in dense.reasons)
    sparse = data_of([f'["label {i % 30}"]' for i in range(300)]).recommend()
    assert sparse.loss == {"type": "asl"}
    assert sparse.evidence["density"] == pytest.approx(1 / 30)


def test_many_labels_are_sparse_whatever_their_density(data_of: Any) -> None:
    cells = [json.dumps([f"l{(i * 7 + k * 11) % 60}" for k in range(10)]) for i in range(200)]
    found = data_of(cells).recommend()
    assert found.evidence["density"] > 0.05
    assert found.loss == {"type": "asl"}


def test_soft_labels_are_learned_whole(data_of: Any) -> None:
    found = data_of(['{"a": 0.7, "b": 0.3}', '{"a": 0.1, "b": 0.9}'] * 30).recommend()
    assert (found.loss, found.alternative) == ({"type": "kl"}, {"type": "soft_cross_entropy"})
    assert found.evidence["soft_labels"] is True


def test_groups_make_group_dro_the_alternative(data_of: Any) -> None:
    labels = repeat(a=60, b=60)
    data = data_of(labels, columns={"group": "user"}, user=[f"u{i % 4}" for i in range(120)])
    found = data.recommend()
    assert (found.loss, found.alternative) == ({"type": "cross_entropy"}, {"type": "group_dro"})
    assert found.evidence["groups"] == 4
    assert any("Sagawa" in paper for paper in found.source)


@pytest.mark.parametrize(
    ("cells", "task"),
    [
        (repeat(a=30, b=30), "text_classification"),
        (['["a"]', '["b", "a"]'] * 30, "multi_label"),
        ([f"{i / 7:.2f}" for i in range(60)], "regression"),
        (repeat(**{"1": 30, "2": 30, "3": 30}), "ordinal"),
        (repeat(**{"1": 30, "2": 30, "3": 30}), "regression"),
    ],
)
def test_every_metric_of_a_task_has_a_recommendation(data_of: Any, cells: list[str], task: Any) -> None:
    data = data_of(cells)
    for metric in METRICS[task]:
        assert data.recommend(metric).metric == metric


def test_an_unknown_metric_is_refused_with_a_hint(data_of: Any) -> None:
    with pytest.raises(SpecError) as refusal:
        data_of(repeat(a=30, b=30)).recommend("makro_f1")
    problem = refusal.value.problems[0]
    assert (problem.pointer, problem.code) == ("metric", "unknown_metric")
    assert "Did you mean 'macro_f1'?" in problem.message
    with pytest.raises(SpecError, match="not measured for task 'text_classification'"):
        data_of(repeat(a=30, b=30)).recommend("mae")


@pytest.mark.parametrize(("labels", "code"), [(repeat(a=30), "one_class_only"), (["a", "", "b"], "row_without_label")])
def test_what_cannot_be_trained_is_refused_as_a_job_would_be(data_of: Any, labels: list[str], code: str) -> None:
    with pytest.raises(SpecError) as refusal:
        data_of(labels).recommend()
    assert refusal.value.problems[0].code == code


# ------------------------------------------------------------------------------------------------------------ real data


@pytest.mark.data
@pytest.mark.skipif(not SHARED_DATA.exists(), reason="MINIMAND_TEST_DATA names no folder")
@pytest.mark.parametrize(
    ("file", "columns", "metric", "task", "loss"),
    [
        ("sst2/train.csv", {}, None, "text_classification", "cross_entropy"),
        ("trec/train.csv", {}, None, "text_classification", "logit_adjusted"),
        ("sms_spam/train.csv", {}, None, "text_classification", "cross_entropy"),
        ("goemotions/train.jsonl.gz", {}, None, "multi_label", "asl"),
        ("stsb/train.csv", {}, None, "regression", "mse"),
        ("sst5/train.csv.gz", {"label": "rating"}, "qwk", "ordinal", "corn"),
    ],
)
def test_real_datasets(
    tmp_path: Path, file: str, columns: dict[str, str], metric: str | None, task: str, loss: str
) -> None:
    source = tmp_path / Path(file).name.removesuffix(".gz")
    if file.endswith(".gz"):
        with gzip.open(SHARED_DATA / file) as packed, source.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    else:
        source = SHARED_DATA / file
    found = Data(tmp_path, source, columns).recommend(metric)
    assert (found.task, main_type(found)) == (task, loss)
    if "sms_spam" in file:
        assert found.loss["class_weights"]["scheme"] == "effective_number"
        assert found.evidence["imbalance_ratio"] == pytest.approx(3614 / 514)
