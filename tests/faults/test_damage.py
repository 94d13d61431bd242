"""A flipped bit is found before anything is done with the file it is in."""

import random

import pytest

from tests.faults.site import Site
from tests.ml.runs import flip_a_bit
from tests.service import events_of, wait_until

pytestmark = pytest.mark.proof


@pytest.mark.row("one flipped bit in a file of the newest checkpoint", runs=8)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(site: Site) -> None:
    worker = site.service.start_worker()
    job = site.submit()
    _, step = site.wait_until_under_way(job)
    site.service.wait_for_checkpoint(site.client, job, after=step)
    worker.kill()  # a graceful stop would add one
    newest, before = site.client.get(f"/v1/jobs/{job}/checkpoints").json()["data"]
    (folder,) = (site.service.home / "files" / "jobs" / job).glob(f"*/checkpoints/{newest['id']}")
    files = sorted(path for path in folder.iterdir() if path.stat().st_size)
    spoilt = files[site.record.seed % len(files)]
    flip_a_bit(spoilt)
    site.damaged.add(newest["step"])
    site.strike(site.service.start_worker)
    site.settle()
    (resumed,) = [event for event in events_of(site.client, job) if event["data"].get("reason") == "resumed"]
    assert (resumed["data"]["step"], resumed["data"]["checkpoint_id"]) == (before["step"], before["id"])


@pytest.mark.row("one flipped bit in a file of a model", runs=8)
def test_a_damaged_model_is_not_served(site: Site) -> None:
    site.service.start_worker()
    job = site.submit()
    (ended,) = site.settle()
    call = {"model": ended["model_id"], "input": "where is my parcel"}
    (folder,) = (site.service.home / "files" / "jobs" / job).glob("*/artifact")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    spoilt = random.Random(site.record.seed).choice(files)
    whole = spoilt.read_bytes()
    flip_a_bit(spoilt)
    refused = site.client.post("/v1/predictions", json=call)
    assert refused.status_code == 503, (spoilt, refused.text)
    assert refused.json()["error"]["code"] == "model_unfit"
    assert spoilt.name in refused.json()["error"]["message"] or spoilt.name == "manifest.json"
    spoilt.write_bytes(whole)
    wait_until(lambda: site.client.post("/v1/predictions", json=call).is_success, 30)
