"""Every loss, in every task it is for, trains through the API on a suitable real file, and its metrics come back.

The trials are read off the table of losses, so a new loss fails until a file is named for it. `make prove-losses` runs
them all; `make test` only looks whether every loss has its file.
"""

import csv
import io
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import httpx
import pytest

from ml.resolve import DEFAULT_LOSS, METRICS
from ml.specs.losses.base import TaskType
from ml.specs.losses.composition import Combine
from ml.specs.losses.table import LOSS_SPECS
from tests.service import RunningService, all_items, running, upload
from tests.shared_data import SHARED_DATA, as_votes, read_shared
from tests.tiny_base import MAX_LENGTH

ROWS, STEPS_AN_EPOCH = 400, 8  # 240 rows train
EPOCHS = 3  # `dwa` does nothing before the third
TRAINING = {"epochs": EPOCHS, "batch_size": 32, "max_length": MAX_LENGTH, "optimizer": {"learning_rate": 3e-3}}
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "every_loss.json"

Row = dict[str, Any]


@dataclass(frozen=True)
class File:
    """Rows of a shared dataset, as they are or made into others, and the columns that their names do not tell."""

    dataset: str
    columns: dict[str, str]
    change: Callable[[Row], Row] = lambda row: row

    def content(self) -> tuple[str, bytes]:
        """A file's name and bytes: a CSV, or JSON Lines where a cell is a list or an object."""
        rows = [self.change(row) for row in random.Random(17).sample(list(read_shared(self.dataset)), ROWS)]
        if not all(isinstance(cell, str) for cell in rows[0].values()):
            return "rows.jsonl", "\n".join(map(json.dumps, rows)).encode()
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return "rows.csv", table.getvalue().encode()


FILES = {
    "sst2": File("sst2", {}),
    "trec": File("trec", {}),
    "trec by fine_label": File("trec", {"group": "fine_label"}),
    "sms_spam": File("sms_spam", {}),
    "mrpc": File("mrpc", {}),
    "goemotions": File("goemotions", {}),
    "stsb": File("stsb", {}),
    "sst5": File("sst5", {"label": "rating"}),
    "sst5 as votes": File("sst5", {}, lambda row: {"text": row["text"], "label": as_votes(row["rating"])}),
    "trec's lengths": File("trec", {}, lambda row: {"text": row["text"], "label": str(len(row["text"].split()))}),
}

# Where each loss is tried. A teacher is trained by the task's default loss on the same file.
SUITABLE: dict[TaskType, dict[str, str]] = {
    "text_classification": {
        "sst2": "binary_hinge poly1 gce sce bootstrap entropy_min",
        "trec": "cross_entropy hinge arcface cosface supcon kd",
        "trec by fine_label": "group_dro v_rex",
        "sms_spam": "focal sigmoid_focal logit_adjusted ldam dice",
        "mrpc": "bce r_drop fgm",
        "sst5 as votes": "soft_cross_entropy kl",
    },
    "multi_label": {"goemotions": "bce sigmoid_focal asl zlpr db_loss soft_margin r_drop fgm entropy_min"},
    "regression": {
        "stsb": "mse mae huber smooth_l1 pinball gaussian_nll fgm",
        "trec's lengths": "poisson_nll",
    },
    "ordinal": {
        "sst5": "cross_entropy mse mae huber smooth_l1 coral corn cumulative_link sord emd2 r_drop supcon fgm "
        "entropy_min kd",
        "sst5 as votes": "soft_cross_entropy kl",
    },
}


@dataclass(frozen=True)
class Trial:
    """A loss in a task: by itself or, as an auxiliary term, beside the task's default loss, combined by a rule."""

    task: TaskType
    loss: str
    rule: str = "fixed"

    def __str__(self) -> str:
        return f"{self.loss}-{self.task}" + ("" if self.rule == "fixed" else f"-{self.rule}")

    @property
    def file(self) -> str:
        """The file named for it."""
        found = [file for file, losses in SUITABLE[self.task].items() if self.loss in losses.split()]
        assert found, f"name a suitable file for '{self.loss}' in '{self.task}'"
        return found[0]

    @property
    def needs_teacher(self) -> bool:
        """Whether another trial's model must be there first."""
        return "teacher" in LOSS_SPECS[self.loss].needs

    @property
    def main_loss(self) -> str:
        """What decides how the model is read."""
        return DEFAULT_LOSS[self.task] if LOSS_SPECS[self.loss].auxiliary_for else self.loss


TRIALS = [Trial(task, loss) for loss, spec in LOSS_SPECS.items() for task in spec.tasks()]
RULES = [get_args(rule.model_fields["type"].annotation)[0] for rule in Combine.__subclasses__()]
RULE_TRIALS = [Trial("text_classification", "supcon", rule) for rule in RULES if rule != "fixed"]
# So small a model learns next to nothing of texts in 24 steps, but how frequent a label or how high a number is.
EASY = [
    Trial("text_classification", "focal"),
    Trial("text_classification", "cross_entropy"),
    Trial("multi_label", "bce"),
    Trial("regression", "poisson_nll"),
    Trial("ordinal", "cross_entropy"),
]


def test_every_loss_has_a_file_in_every_task_it_is_for_and_no_file_a_loss_that_is_gone() -> None:
    named = [Trial(task, loss) for task, files in SUITABLE.items() for each in files.values() for loss in each.split()]
    assert sorted(map(str, named)) == sorted(map(str, TRIALS))


class Proof:
    """One installation with two workers, and what came of each trial."""

    def __init__(self, service: RunningService, client: httpx.Client) -> None:
        self.service, self.client = service, client
        self.datasets = {name: self._upload(file) for name, file in FILES.items()}
        self.replies: dict[Trial, httpx.Response] = {}
        self.results: dict[str, dict[str, Any]] = {}

    def told(self, loss: str) -> dict[str, Any]:
        """What the catalogue says of a loss."""
        body: dict[str, Any] = self.client.get(f"/v1/losses/{loss}").raise_for_status().json()
        return body

    def loss_of(self, trial: Trial) -> dict[str, Any]:
        """The loss's own example, with a teacher of ours in the place of the example's."""
        example: dict[str, Any] = self.told(trial.loss)["example"]
        if trial.needs_teacher:
            example["teacher"] = self.job(Trial(trial.task, trial.main_loss))["model_id"]
        if trial.main_loss == trial.loss:
            return example
        terms = [{"id": "main", "loss": {"type": trial.main_loss}}, {"loss": example, "weight": 0.5}]
        return {"terms": terms, "combine": {"type": trial.rule}}

    def submit(self, trial: Trial) -> httpx.Response:
        """The answer to a trial's job, which is asked for once."""
        if trial not in self.replies:
            spec = {
                "name": str(trial),
                "model": "tiny",
                "dataset": self.datasets[trial.file],
                "task": {"type": trial.task},
                "split": {"validation": 0.2, "test": 0.2},
                "loss": self.loss_of(trial),
                "training": TRAINING,
            }
            self.replies[trial] = self.client.post("/v1/jobs", json=spec)
        return self.replies[trial]

    def job(self, trial: Trial) -> dict[str, Any]:
        """A trial's job, once it has succeeded."""
        reply = self.submit(trial)
        assert reply.status_code == 201, reply.text
        return self.service.wait_for_job(self.client, reply.json()["id"], ["succeeded"], timeout_seconds=800)

    def series(self, job: dict[str, Any], name: str) -> list[float]:
        """A metric of a job, step by step."""
        return [one["value"] for one in all_items(self.client, f"/v1/jobs/{job['id']}/metrics", name=name, limit=100)]

    def first_and_last_epoch(self, job: dict[str, Any]) -> tuple[float, float]:
        """Mean losses of the same rows."""
        losses = self.series(job, "train/loss")
        return fmean(losses[:STEPS_AN_EPOCH]), fmean(losses[-STEPS_AN_EPOCH:])

    def note(self, trial: Trial, job: dict[str, Any]) -> None:
        """Keep what came of a trial for the table."""
        figures = {"train/loss": self.first_and_last_epoch(job), "test": job["metrics"]["test"]}
        self.results[str(trial)] = {"task": trial.task, "file": trial.file, **figures}

    def predict(self, job: dict[str, Any], file: str) -> list[dict[str, Any]]:
        """Its model's answers to the first rows of a file."""
        dataset = f"/v1/datasets/{self.datasets[file]}"
        columns = self.client.get(dataset).raise_for_status().json()["columns"]
        rows = self.client.get(f"{dataset}/rows", params={"limit": 3}).raise_for_status().json()["data"]
        texts = [
            {role: row["cells"][columns[role]] for role in ("text", "text_pair")}
            if columns["text_pair"]
            else row["cells"][columns["text"]]
            for row in rows
        ]
        reply = self.client.post("/v1/predictions", json={"model": job["model_id"], "input": texts})
        results: list[dict[str, Any]] = reply.raise_for_status().json()["results"]
        assert len(results) == 3
        return results

    def _upload(self, file: File) -> str:
        name, content = file.content()
        return upload(self.client, content, filename=name, columns=json.dumps(file.columns))


@pytest.fixture(scope="module")
def proof(
    tmp_path_factory: pytest.TempPathFactory, valkey_server: str, request: pytest.FixtureRequest
) -> Iterator[Proof]:
    """With the job of every test at hand queued, but those that wait for a teacher."""
    home = tmp_path_factory.mktemp("proof") / "home"
    with running(home, broker_url=valkey_server, lease_seconds=60) as service:
        service.start_api()
        for _core in range(2):
            service.start_worker()
        with service.client() as client:
            proof = Proof(service, client)
            for test in request.session.items:
                trial = test.callspec.params["trial"] if "proof" in getattr(test, "fixturenames", ()) else None
                if trial and not trial.needs_teacher:
                    proof.submit(trial)
            yield proof
    write_down(proof.results, request.config)


def write_down(results: dict[str, dict[str, Any]], config: pytest.Config) -> None:
    """A table for whoever looks, and the figures as JSON."""
    terminal, capture = map(config.pluginmanager.get_plugin, ("terminalreporter", "capturemanager"))
    with capture.global_and_fixture_disabled():
        terminal.write_line(f"\n\n{'trial':40}{'file':20}{'train/loss':18}test")
        for name, one in results.items():
            fell = " → ".join(f"{loss:.3f}" for loss in one["train/loss"])
            test = ", ".join(f"{metric} {value:.3f}" for metric, value in list(one["test"].items())[:3])
            terminal.write_line(f"{name:40}{one['file']:20}{fell:18}{test}")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def prove(trials: Sequence[Trial]) -> Any:
    """Marks a test of each trial, on the shared files."""
    missing = sorted({file.dataset for file in FILES.values() if not (SHARED_DATA / file.dataset).is_dir()})
    is_missing = pytest.mark.skipif(bool(missing), reason=f"{SHARED_DATA} lacks {', '.join(missing)}")
    marks = (pytest.mark.proof, pytest.mark.data, pytest.mark.timeout(900), is_missing)
    return pytest.mark.parametrize("trial", [pytest.param(trial, id=str(trial), marks=marks) for trial in trials])


def check_loss(resolved: dict[str, Any], sent: dict[str, Any]) -> None:
    """Nothing that was asked of a loss is lost; defaults are added."""
    if "terms" not in sent:
        assert {**resolved, **sent} == resolved
        return
    assert resolved["combine"]["type"] == sent["combine"]["type"]
    for term, asked in zip(resolved["terms"], sent["terms"], strict=True):
        assert {**term["loss"], **asked["loss"]} == term["loss"]


def check_metrics(proof: Proof, trial: Trial, job: dict[str, Any], has_probabilities: bool) -> None:
    """All that the task measures, on the test part, and the same in the job, its series and its model's report."""
    test: dict[str, float] = job["metrics"]["test"]
    is_sure = has_probabilities or trial.task == "multi_label"
    expected = {name for name in METRICS[trial.task] if is_sure or name not in ("loss", "ece", "brier")}
    if trial.task == "ordinal":
        expected -= {"spearman"}  # undefined while so small a model gives one level to every row
    assert expected <= test.keys()
    assert all(map(math.isfinite, test.values()))
    assert [proof.series(job, f"test/{name}") for name in test] == [[value] for value in test.values()]
    report = proof.client.get(f"/v1/models/{job['model_id']}/report").raise_for_status().json()
    assert report["metrics"] == job["metrics"]


def check_series(proof: Proof, job: dict[str, Any]) -> None:
    """A loss for every step, and for every step of each term where there are several."""
    terms = job["spec"]["loss"].get("terms", ())
    for name in ("train/loss", *(f"train/loss/{term['id'] or term['loss']['type']}" for term in terms)):
        series = proof.series(job, name)
        assert len(series) == EPOCHS * STEPS_AN_EPOCH, name
        assert all(map(math.isfinite, series)), name


def check_result(result: dict[str, Any], trial: Trial, has_probabilities: bool) -> None:
    """A reply as the task promises it."""
    if trial.task == "regression":
        assert math.isfinite(result["value"])
        assert ("standard_deviation" in result) == (trial.loss == "gaussian_nll")
        assert ("quantiles" in result) == (trial.loss == "pinball")
        return
    scores: dict[str, float] = result["scores"]
    assert all(map(math.isfinite, scores.values()))
    if trial.task == "multi_label":
        assert set(result["labels"]) <= set(scores)
        return
    assert result["score"] == scores[result["label"]]
    if has_probabilities:
        assert sum(scores.values()) == pytest.approx(1)


@prove([*TRIALS, *RULE_TRIALS])
def test_it_trains_on_a_real_file_answers_over_http_and_its_metrics_come_back(trial: Trial, proof: Proof) -> None:
    job = proof.job(trial)
    check_loss(job["spec"]["loss"], proof.loss_of(trial))
    has_probabilities = proof.told(trial.main_loss)["has_probabilities"][trial.task]
    check_metrics(proof, trial, job, has_probabilities)
    check_series(proof, job)
    for result in proof.predict(job, trial.file):
        check_result(result, trial, has_probabilities)
    proof.note(trial, job)


@prove(EASY)
def test_the_loss_falls_where_frequencies_alone_teach_something(trial: Trial, proof: Proof) -> None:
    first, last = proof.first_and_last_epoch(proof.job(trial))
    assert last < first
