"""The application with a trained model and no worker: the test carries queued jobs out in its own thread."""

import threading
from pathlib import Path
from typing import Any

from app.jobs import repository
from app.jobs.repository import Claim
from tests.service import AppHouse, submit, tickets, tiny_base, tiny_spec, upload
from workers.runner import Runner
from workers.spares import Spares


class BulkHouse(AppHouse):
    """A model and the dataset it was trained on."""

    def __init__(self, home: Path, **settings: Any) -> None:
        super().__init__(home, base_models={"tiny": tiny_base()}, inference_threads=1, trainer_threads=1, **settings)
        self.dataset = upload(self.client, tickets(60))
        submit(self.client, tiny_spec(self.dataset, epochs=5))
        self.model: str = self.carry_out("training", "cpu")["model_id"]

    def claim(self, kind: str, queue: str = "bulk") -> Claim:
        with self.database.write() as session:
            claim = repository.claim_next(
                session, queues=(queue,), kinds=(kind,), owner="w", lease=600, now=self.database.now
            )
        assert claim is not None
        return claim

    def carry_out(self, kind: str, queue: str = "bulk") -> dict[str, Any]:
        """What a worker's slot does with the oldest job of a kind; the job as it is then."""
        claim = self.claim(kind, queue)
        runner = Runner(self.database, self.services.store, self.settings, Spares([], self.settings.home, nice=0))
        runner.run(claim, {}, threading.Event())
        job: dict[str, Any] = self.client.get(f"/v1/jobs/{claim.job_id}").json()
        assert job["status"] == "succeeded", job
        return job
