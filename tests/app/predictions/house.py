"""The application with one trained model, of which copies are soon made."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

from app.db.tables import ModelRow
from app.ids import new_id
from app.jobs import repository
from ml.artifact.description import DESCRIPTION
from ml.artifact.manifest import MANIFEST, publish_folder
from tests.service import AppHouse, error_of, submit, tickets, tiny_base, tiny_spec, upload
from workers.runner import Runner
from workers.spares import Spares


class House(AppHouse):
    """The application with one trained model, of which copies are soon made."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, base_models={"tiny": tiny_base()}, inference_threads=1, trainer_threads=1)
        self.job = submit(self.client, tiny_spec(upload(self.client, tickets(60)), epochs=5))
        self._run_queued_job()
        self.model: str = self.client.get(f"/v1/jobs/{self.job}").json()["model_id"]

    def _run_queued_job(self) -> None:
        """What a worker's slot does, in this thread."""
        now = self.database.now
        with self.database.write() as session:
            claim = repository.claim_next(session, queues=("cpu",), kinds=("training",), owner="w", lease=600, now=now)
        assert claim is not None
        spares = Spares([], self.settings.home, nice=0)
        Runner(self.database, self.services.models._store, self.settings, spares).run(claim, {}, threading.Event())

    def copy_model(self, *, is_turned: bool = False) -> str:
        """Another model with the same files under another key. is_turned: its labels stand in the other order."""
        store, model_id = self.services.models._store, new_id("mdl")
        with self.database.write() as session:
            row = session.get_one(ModelRow, self.model)
            folder = store.local_path(row.folder)
            if is_turned:
                folder = self._turn(folder)
            store.put_folder(folder, f"copies/{model_id}")
            columns = {column.key: getattr(row, column.key) for column in ModelRow.__mapper__.column_attrs}
            other = {"id": model_id, "job_id": new_id("job"), "folder": f"copies/{model_id}"}
            session.add(ModelRow(**{**columns, **other}))
        return model_id

    def _turn(self, folder: Path) -> Path:
        turned = self.settings.home / "turned"
        if not turned.exists():
            with publish_folder(turned, "artifact", {}) as copy:
                for file in folder.iterdir():
                    shutil.copy(file, copy)
                (copy / MANIFEST).unlink()
                description = json.loads((copy / DESCRIPTION).read_text())
                description["task"]["labels"].reverse()
                (copy / DESCRIPTION).write_text(json.dumps(description))
        return turned

    def spoil(self, model_id: str) -> None:
        """Make a copy of a model unfit to be served."""
        file = self.services.models._store.local_path(f"copies/{model_id}") / DESCRIPTION
        file.write_text(file.read_text() + " ")

    def predict(self, given: Any, model: str | None = None) -> list[dict[str, Any]]:
        reply = self.client.post("/v1/predictions", json={"model": model or self.model, "input": given})
        assert reply.status_code == 200, reply.text
        results: list[dict[str, Any]] = reply.json()["results"]
        return results

    def refuse(self, status: int, *, raw: str | None = None, **body: Any) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if raw is None:
            reply = self.client.post("/v1/predictions", json={"model": self.model, **body})
        else:
            reply = self.client.post("/v1/predictions", content=raw, headers=headers)
        assert reply.status_code == status, reply.text
        return error_of(reply)
