"""A client generated from the document does the main job: upload, job, wait, predict."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.jobs.bulk_house import BulkHouse
from tests.service import tickets, tiny_spec

ROOT = Path(__file__).parents[3]
PROGRAMS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BulkHouse]:
    house = BulkHouse(tmp_path_factory.mktemp("client"))
    yield house
    house.close()


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of the generated package."""
    folder, name = tmp_path_factory.mktemp("generated"), "minimand_client"
    command = [PROGRAMS / "openapi-python-client", "generate", "--path", ROOT / "openapi.json", "--meta", "none"]
    environment = {**os.environ, "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}  # it formats by ruff
    run = subprocess.run(
        [*command, "--output-path", folder / name], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Endpoint will not be generated" not in run.stdout, run.stdout
    assert "Unable to process schema" not in run.stdout, run.stdout
    sys.path.insert(0, str(folder))
    yield name
    sys.path.remove(str(folder))


def test_a_generated_client_does_the_main_job(house: BulkHouse, generated: str) -> None:
    def part(path: str) -> Any:
        return importlib.import_module(f"{generated}.{path}")

    models, types = part("models"), part("types")
    client = part("client").AuthenticatedClient(base_url="http://testserver", token=house.secret)
    client.set_httpx_client(house.client)  # the application in this process, in the place of a connection

    file = types.File(payload=tickets(60), file_name="tickets.csv", mime_type="text/csv")
    dataset = part("api.datasets.create_dataset").sync(client=client, body=models.BodyCreateDataset(file=file))
    assert dataset.rows == 60

    asked = models.JobSpec.from_dict(tiny_spec(dataset.id, epochs=2))
    asked.loss = models.FocalSpec(type_="focal", gamma=1.0)
    submitted = part("api.jobs.create_job").sync(client=client, body=asked)
    assert (submitted.status, submitted.dataset) == ("queued", dataset.id)
    house.carry_out("training", "cpu")
    job = part("api.jobs.get_job").sync(client=client, job_id=submitted.id)
    assert job.status == "succeeded"

    text = models.PredictionRequest(model=job.model_id, input_="where is my parcel")
    prediction = part("api.predictions.predict").sync(client=client, body=text)
    assert prediction.model == job.model_id
    assert prediction.results[0].label in dataset.labels.additional_properties

    missing = part("api.jobs.get_job").sync(client=client, job_id="job_none")
    assert (missing.error.type_, missing.error.code) == ("not_found_error", "job_not_found")
