"""Models come, go and change places while the API and a replica of it are asked."""

import time

import httpx
import pytest

from app.db.session import Database
from app.storage import FileStore
from tests.callers import TEXT, Callers
from tests.faults.site import Site
from tests.service import PATIENCE_SECONDS, copy_model, wait_until

pytestmark = pytest.mark.proof

SWAPS = 4


@pytest.mark.row("a model deleted, an alias swapped, under load, with a replica", runs=8)
def test_every_answer_is_wholly_one_models_and_a_deleted_one_is_not_found(site: Site) -> None:
    _, url = site.service.start_inference()
    home, environment = site.service.home, site.service.environment
    database = Database(environment.get("MINIMAND_DATABASE_URL", f"sqlite:///{home / 'minimand.sqlite3'}"))
    store = FileStore(str(home / "files"), home / "cache")
    (served, *_) = site.client.get("/v1/models?order=asc").json()["data"]
    versions = [copy_model(database, store, served["id"], is_turned=is_turned) for is_turned in (False, True)]
    labels = {model: label_by(site.client, model) for model in versions}
    assert len(set(labels.values())) == 2

    def connect() -> httpx.Client:
        return site.service.client()

    def connect_to_replica() -> httpx.Client:
        client = site.service.client()
        client.base_url = httpx.URL(url)
        return client

    point(site, versions[0])
    with connect_to_replica() as replica:
        with Callers(connect, "swapped", labels) as here, Callers(connect_to_replica, "swapped", labels) as there:
            there.wait_for(versions[0])
            for swap in range(1, SWAPS + 1):
                model = versions[swap % 2]
                struck = time.monotonic()
                point(site, model)
                wait_until(lambda model=model: answers_from(replica, model), PATIENCE_SECONDS)
                site.record.recoveries.append(time.monotonic() - struck)
                here.wait_for(model)
                there.wait_for(model)
        assert here.wrong == there.wrong == []
        doomed = versions[1 - SWAPS % 2]
        with Callers(connect, doomed, labels) as here, Callers(connect_to_replica, doomed, labels) as there:
            here.wait_for(doomed)
            there.wait_for(doomed)
            struck = time.monotonic()
            assert site.client.delete(f"/v1/models/{doomed}").status_code == 204
            here.wait_for("model_not_found")
            there.wait_for("model_not_found")
            site.record.recoveries.append(time.monotonic() - struck)
        assert here.wrong == there.wrong == []
    assert site.client.delete("/v1/aliases/swapped").status_code == 204
    database.close()


def point(site: Site, model: str) -> None:
    site.client.put("/v1/aliases/swapped", json={"model": model}).raise_for_status()


def answers_from(client: httpx.Client, model: str) -> bool:
    reply = client.post("/v1/predictions", json={"model": "swapped", "input": TEXT}).raise_for_status()
    return bool(reply.json()["model"] == model)


def label_by(client: httpx.Client, model: str) -> str:
    reply = client.post("/v1/predictions", json={"model": model, "input": TEXT}).raise_for_status()
    (result,) = reply.json()["results"]
    return str(result["label"])
