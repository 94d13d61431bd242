"""A run directory as its trainer wants it: spec, rows, facts, placement, and the checkpoints to go on from.

It reads rows and the store, and changes neither.
"""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.datasets import repository as datasets
from app.db.session import Database
from app.db.tables import CheckpointRow, JobRow, ModelRow
from app.jobs import repository
from app.jobs.setups import setup_of, teachers_in
from app.jobs.states import BULK_KINDS
from app.models import repository as models
from app.models.service import folders_of
from app.settings import Settings
from app.storage import FileStore
from ml.artifact.manifest import DamagedFolderError, verify_folder
from ml.artifact.merge import write_merged
from ml.bases import find_base

log = logging.getLogger(__name__)


class Layout:
    """Lays out run directories."""

    def __init__(self, database: Database, store: FileStore, settings: Settings) -> None:
        self._database = database
        self._store = store
        self._settings = settings

    def lay_out(self, job: JobRow, checkpoints: Sequence[CheckpointRow], folder: Path) -> dict[str, str]:
        """Fill an empty folder for a job. checkpoints: its own, the newest first; a job that publishes one takes that.

        Returns the ids of the checkpoints that are there, by folder name. Raises FileNotFoundError for what is gone.
        """
        with self._database.read() as session:
            dataset = datasets.find(session, job.project_id, job.dataset_id)
            source = None if job.checkpoint_id is None else repository.get_checkpoint(session, job.checkpoint_id)
        if dataset is None:
            raise FileNotFoundError(f"dataset {job.dataset_id}")
        _write_json(folder / "spec.json", job.spec)
        _write_json(folder / "facts.json", dataset.facts)
        (folder / "rows.parquet").symlink_to(self._store.local_path(dataset.file))
        is_bulk = job.kind in BULK_KINDS
        base_models, start = ({}, None) if is_bulk else self._start_of(job, folder / "start")
        placement = {
            "kind": job.kind,
            "base_models": {name: str(path) for name, path in base_models.items()},
            "start": start and str(start),
            "model": self._folders(job, job.spec["model"]) if is_bulk else None,
            "dataset_sha256": dataset.sha256,
            "source": source and {"job_id": source.job_id, "checkpoint_id": source.id, "step": source.step},
            "teachers": self._teachers(job),
            "cache": self._cache(),
            "threads": self._settings.trainer_threads,
            "memory_bytes": self._settings.trainer_memory_bytes if job.queue != "gpu" else 0,
            "nice": self._settings.trainer_nice,
            "parent_pid": os.getpid(),
        }
        _write_json(folder / "run.json", placement)
        taken = [source] if source else checkpoints[: self._settings.keep_checkpoints]
        return self._copy_checkpoints(taken, folder / "checkpoints")

    def _copy_checkpoints(self, checkpoints: Sequence[CheckpointRow], folder: Path) -> dict[str, str]:
        """Those that verify."""
        ids: dict[str, str] = {}
        for checkpoint in checkpoints:
            name = f"step-{checkpoint.step:08d}"
            if name in ids or not self._store.exists(checkpoint.folder):
                continue
            shutil.copytree(self._store.local_path(checkpoint.folder), folder / name)
            try:
                verify_folder(folder / name)
            except DamagedFolderError as error:
                log.warning("checkpoint %s is damaged: %s", checkpoint.id, error)
                shutil.rmtree(folder / name)
            else:
                ids[name] = checkpoint.id
        return ids

    def _start_of(self, job: JobRow, merged: Path) -> tuple[dict[str, Path], Path | None]:
        """The folders of base models; and, where the job trains a model further, that model's artifact.

        Such a model is a base under its own id; one that is a head alone, with the folder of the base it stands on; and
        one that is an adapter, with a new folder that holds both.
        """
        bases, name = self._settings.base_folders, job.spec["model"]
        if not name.startswith("mdl_"):
            return bases, None
        model = self._model(job, name)
        artifact, runtime = folders_of(self._store, model)
        if model.description.get("is_adapted"):  # which earlier models do not say
            bases[name] = write_merged(artifact, runtime, merged)
        elif model.description["head"] == "native":
            bases[name] = artifact
        else:
            bases[name] = find_base(model.description["base_model"], bases)
        return bases, artifact

    def _teachers(self, job: JobRow) -> dict[str, tuple[str, str]]:
        """The folders of the models that the job's loss learns from, by id."""
        return {name: self._folders(job, name) for name in set(teachers_in(setup_of(job)).values())}

    def _folders(self, job: JobRow, model_id: str) -> tuple[str, str]:
        artifact, runtime = folders_of(self._store, self._model(job, model_id))
        return str(artifact), str(runtime)

    def _model(self, job: JobRow, model_id: str) -> ModelRow:
        with self._database.read() as session:
            model = models.find(session, job.project_id, model_id)
        if model is None:
            raise FileNotFoundError(f"the model {model_id}, which the job needs")
        return model

    def _cache(self) -> dict[str, Any] | None:
        """Where the trainer finds what earlier jobs computed."""
        limit = self._settings.training_cache_bytes
        return {"folder": str(self._settings.training_cache), "max_bytes": limit} if limit else None


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False))
