"""A served LoRA model is trained further on fresh data with two labels it has not seen, over HTTP."""

import io
import zipfile
from pathlib import Path
from typing import Any

from tests.service import events_of, running, submit, tickets, tiny_spec, upload

NEW = {"colour": "blue red green", "weather": "rain snow sun"}


def test_fresh_data_with_two_new_labels_refine_a_served_model(tmp_path: Path) -> None:
    fresh = tickets(90, seed=1).decode()
    fresh += "".join(
        f"what {word} {i},{label}\n" for label, words in NEW.items() for i in range(10) for word in words.split()
    )
    with running(tmp_path / "home") as service:
        service.start_up()
        with service.client() as client:
            begun = {**tiny_spec(upload(client, tickets(90))), "tuning": "lora"}
            first = service.wait_for_job(client, submit(client, begun), ["succeeded"])
            spec: dict[str, Any] = {**tiny_spec(upload(client, fresh.encode())), "model": first["model_id"]}
            second = service.wait_for_job(client, submit(client, spec), ["succeeded"])
            said = [event["message"] for event in events_of(client, second["id"])]
            before, after = (client.get(f"/v1/models/{job['model_id']}").json() for job in (first, second))
            asked = {"model": second["model_id"], "input": ["what snow 3", "what red 5"]}
            download = client.get(f"/v1/models/{first['model_id']}/download").content
            answers = [result["label"] for result in client.post("/v1/predictions", json=asked).json()["results"]]
    assert any("3 labels are known, new: colour, weather" in message for message in said)
    assert after["labels"] == sorted([*before["labels"], *NEW])
    assert after["base_model"] == before["base_model"] == "tiny"
    assert answers == ["weather", "colour"]
    whole = zipfile.ZipFile(io.BytesIO(download)).namelist()
    assert {"model.onnx", "model.safetensors", "config.json", "tokenizer.json"} <= set(whole)
    assert second["metrics"]["test"]["accuracy"] > 0.6
