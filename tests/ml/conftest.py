"""The tiny base model, and what was trained on it once for all tests that only look."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from ml.training.export import export_artifact
from ml.training.fit import Fitted
from ml.training.prepare import Prepared
from ml.training.run import RunDirectory
from tests.ml.runs import fit_run, lay_out, prepare_run
from tests.tiny_base import make_tiny_base


@dataclass(frozen=True)
class Exported:
    """A finished run: its network as trained, and the folders it was exported to."""

    run: RunDirectory
    prepared: Prepared
    fitted: Fitted

    @property
    def artifact(self) -> Path:
        return self.run.artifact

    @property
    def runtime(self) -> Path:
        """Where the ONNX file and the tokenizer are."""
        return self.run.base if self.prepared.encoder is not None else self.run.artifact


@pytest.fixture(scope="session", autouse=True)
def quiet_and_alone() -> None:
    """One thread: more get in each other's way on such small matrices. No word of every head that is new."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the base model `tiny`."""
    return make_tiny_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture(scope="session")
def exported_full(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Exported:
    """A model of which every parameter was trained."""
    training = {"epochs": 4, "optimizer": {"type": "adamw", "learning_rate": 3e-3}}
    run = lay_out(tmp_path_factory.mktemp("full"), training=training)
    return export(run, prepare_run(run, tiny_base))


@pytest.fixture(scope="session")
def exported_frozen(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Exported:
    """A head over the encoder as it was."""
    run = lay_out(tmp_path_factory.mktemp("frozen"), tuning={"type": "frozen"})
    return export(run, prepare_run(run, tiny_base))


def export(run: RunDirectory, prepared: Prepared) -> Exported:
    """Train and export."""
    fitted = fit_run(run, prepared)
    export_artifact(run, prepared, fitted, dataset_sha256="0" * 64)
    return Exported(run, prepared, fitted)
