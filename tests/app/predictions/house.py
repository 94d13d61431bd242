"""The application with one trained model, of which copies are soon made."""

import threading
from pathlib import Path
from typing import Any

from app.jobs import repository
from ml.artifact.description import DESCRIPTION
from tests.service import AppHouse, copy_model, error_of, submit, tickets, tiny_base, tiny_spec, upload
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

    def copy_model(self, **changes: Any) -> str:
        """See `tests.service.copy_model`."""
        return copy_model(self.database, self.services.models._store, self.model, **changes)

    def spoil(self, model_id: str) -> None:
        """Make a copy of a model unfit to be served."""
        file = self.services.models._store.local_path(f"copies/{model_id}") / DESCRIPTION
        file.write_text(file.read_text() + " ")

    def predict(self, given: Any, model: str | None = None, **options: Any) -> list[dict[str, Any]]:
        reply = self.client.post("/v1/predictions", json={"model": model or self.model, "input": given, **options})
        assert reply.status_code == 200, reply.text
        results: list[dict[str, Any]] = reply.json()["results"]
        return results

    def refuse(self, status: int, *, content: str | None = None, **body: Any) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if content is None:
            reply = self.client.post("/v1/predictions", json={"model": self.model, **body})
        else:
            reply = self.client.post("/v1/predictions", content=content, headers=headers)
        assert reply.status_code == status, reply.text
        return error_of(reply)
