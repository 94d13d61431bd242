"""LoRA models of one base share its session, and rows of different models go through it together."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification

from app.models.download import assemble
from ml.artifact.description import ADAPTER, HEAD, INT8, ONNX, read_description
from ml.artifact.manifest import DamagedFolderError, verify_folder
from ml.bases import WEIGHTS
from ml.evaluation.scores import softmax
from ml.inference.adapters import stack_adapters
from ml.inference.backends import OnnxBackend, OnnxEngine, open_session
from ml.inference.cache import ModelCache
from ml.inference.classifier import OnnxClassifier, WrongAnswersError, load_classifier
from ml.inference.scheduler import Scheduler
from ml.inference.shared import Shared
from ml.inference.torch_backend.backend import TorchEngine
from ml.training.export import export_artifact
from tests.ml.conftest import Exported, export
from tests.ml.runs import flip_a_bit, lay_out, prepare_run, trained_logits
from tests.tiny_base import learnable_rows

LEARNING: dict[str, Any] = {"epochs": 2, "optimizer": {"type": "adamw", "learning_rate": 2e-2}}
TEXTS = [text for text, _ in learnable_rows(12, seed=3)] + ["hello", "money back " * 40]
TWO_LABELS = [(text, "yes" if "parcel" in text or i % 2 else "no") for i, (text, _) in enumerate(learnable_rows(60))]
# Of other ranks, of some layers only, of other labels, of ranks that differ by layer, and with another kind of head.
SPECS: dict[str, dict[str, Any]] = {
    "lora": {"tuning": {"type": "lora"}},
    "rank 2": {"tuning": {"type": "lora", "rank": 2, "alpha": 8}, "rows": TWO_LABELS},
    "queries": {"tuning": {"type": "lora", "rank": 3, "target_modules": ["query"]}},
    "adalora": {"tuning": {"type": "adalora", "rank": 2, "initial_rank": 4, "interval": 2}},
    "cosine": {"tuning": {"type": "lora"}, "loss": {"type": "arcface", "scale": 16}},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> dict[str, Exported]:
    """One of each; all are served over the files that the first has written."""
    made: dict[str, Exported] = {}
    for number, (name, spec) in enumerate(SPECS.items()):
        folder = tmp_path_factory.mktemp("adapted")
        run = lay_out(folder, training={**LEARNING, "seed": number}, **spec)
        made[name] = export(run, prepare_run(run, tiny_base))
    return made


@pytest.fixture(scope="module")
def base(models: dict[str, Exported]) -> Path:
    return models["lora"].run.base


def tolerance(model: Exported) -> float:
    return read_description(model.artifact).probe.tolerance


def cached(models: dict[str, Exported], base: Path, max_bytes: int = 10**9) -> dict[str, OnnxClassifier]:
    cache = ModelCache(max_bytes, OnnxEngine(1))
    return {name: cache.get(name, lambda model=model: (model.artifact, base)) for name, model in models.items()}  # type: ignore[misc]


def test_models_store_what_trained_and_share_the_files_of_their_base(models: dict[str, Exported], base: Path) -> None:
    for model in models.values():
        description = read_description(model.artifact)
        assert description.is_adapted
        assert description.shared_folder == f"{model.prepared.base_sha256}-lora-1"
        assert verify_folder(model.artifact)["files"].keys() >= {HEAD, ADAPTER}
        assert not {ONNX, INT8, WEIGHTS} & verify_folder(model.artifact)["files"].keys()
        # Whichever run comes first writes them.
        assert (model.run.base / WEIGHTS).read_bytes() == (base / WEIGHTS).read_bytes()


def test_rows_of_many_models_answer_in_one_pass_as_each_models_own_network_does(
    models: dict[str, Exported], base: Path
) -> None:
    served = cached(models, base)
    assert len({id(classifier.session) for classifier in served.values()}) == 1
    expected = {name: trained_logits(model.prepared, TEXTS) for name, model in models.items()}
    assert {logits.shape[1] for logits in expected.values()} == {2, 3}
    chance = random.Random(5)
    for _ in range(20):
        rows = [(chance.choice(list(models)), chance.randrange(len(TEXTS))) for _ in range(chance.randint(2, 24))]
        networks = [served[name] for name, _ in rows]
        encodings = [served[name].tokenize([TEXTS[text]])[0] for name, text in rows]
        outputs = networks[0].encode(encodings, networks=networks)
        for (name, text), output in zip(rows, outputs, strict=True):
            logits = served[name].read(output[None])[0]
            np.testing.assert_allclose(logits, expected[name][text], rtol=0, atol=tolerance(models[name]))


def test_the_scheduler_gives_each_row_the_adapter_of_its_model(models: dict[str, Exported], base: Path) -> None:
    served = cached(models, base)
    passes: list[int] = []

    class Watch:
        def observe_pass(self, rows: int, _tokens: int, _padding: int, /) -> None:
            passes.append(rows)

    scheduler = Scheduler(1_000, observer=Watch())
    try:
        futures = [
            (name, text, scheduler.submit(classifier, classifier.tokenize([text])))
            for text in TEXTS
            for name, classifier in served.items()
        ]
        for name, text, future in futures:
            logits = served[name].read(future.result(timeout=10).outputs)
            alone = served[name].logits(served[name].tokenize([text]))
            np.testing.assert_allclose(logits, alone, rtol=0, atol=tolerance(models[name]))
    finally:
        scheduler.close()
    assert max(passes) > 1


def test_a_model_that_was_dropped_answers_the_same_when_it_is_loaded_again(
    models: dict[str, Exported], base: Path
) -> None:
    cache = ModelCache(0, OnnxEngine(1))  # the newest alone
    for name in [*models, *models]:
        classifier = cache.get(name, lambda name=name: (models[name].artifact, base))  # type: ignore[misc]
        assert len(cache) == 1
        logits = classifier.logits(classifier.tokenize(TEXTS))
        expected = trained_logits(models[name].prepared, TEXTS)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance(models[name]))


def test_the_cache_counts_what_a_model_adds_to_the_session(models: dict[str, Exported], base: Path) -> None:
    cache = ModelCache(10**9, OnnxEngine(1))
    first = cache.get("lora", lambda: (models["lora"].artifact, base))
    before = cache.bytes
    cache.get("rank 2", lambda: (models["rank 2"].artifact, base))
    adapter = sum(tensor.nbytes for tensor in load_file(models["rank 2"].artifact / ADAPTER).values())
    assert adapter < cache.bytes - before < adapter + 20_000
    assert first.session.bytes > 2 * (cache.bytes - before)


def test_a_damaged_adapter_is_refused(models: dict[str, Exported], base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(models["lora"].artifact, tmp_path / "copy"))
    flip_a_bit(copy / ADAPTER)
    with pytest.raises(DamagedFolderError, match=ADAPTER):
        ModelCache(0, OnnxEngine(1)).get("mdl_1", lambda: (copy, base))


def test_another_models_adapter_is_refused(models: dict[str, Exported], base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(models["lora"].artifact, tmp_path / "copy"))
    save_file({name: -tensor for name, tensor in load_file(copy / ADAPTER).items()}, copy / ADAPTER)
    with pytest.raises(WrongAnswersError):
        OnnxClassifier(copy, base, OnnxBackend(base / ONNX, 1))


@pytest.mark.parametrize("name", ["lora", "rank 2", "queries", "adalora"])
def test_a_download_is_a_whole_model_with_the_same_answers(
    models: dict[str, Exported], base: Path, name: str, tmp_path: Path
) -> None:
    model = models[name]
    shutil.unpack_archive(assemble(model.artifact, base, tmp_path / "model.zip"), tmp_path / "whole")
    loaded, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "whole", local_files_only=True, output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert list(loaded.config.id2label.values()) == read_description(model.artifact).task.labels
    session = open_session(tmp_path / "whole" / ONNX, 1)
    assert {given.name for given in session.get_inputs()} == {"input_ids", "attention_mask", "token_type_ids"}
    served = OnnxClassifier(model.artifact, base, OnnxBackend(base / ONNX, 1))
    expected = trained_logits(model.prepared, TEXTS)
    for encoding, logits in zip(served.tokenize(TEXTS), expected, strict=True):
        feeds = {
            "input_ids": np.array([encoding.ids]),
            "attention_mask": np.array([encoding.attention_mask]),
            "token_type_ids": np.array([encoding.type_ids]),
        }
        np.testing.assert_allclose(session.run(None, feeds)[0][0], logits, rtol=0, atol=1e-4)
        with torch.no_grad():
            answer = loaded.eval()(**{name: torch.from_numpy(ids) for name, ids in feeds.items()}).logits[0]
        np.testing.assert_allclose(answer.numpy(), logits, rtol=0, atol=1e-4)


def test_a_download_that_transformers_cannot_express_has_nothing_that_it_would_load(
    models: dict[str, Exported], base: Path, tmp_path: Path
) -> None:
    shutil.unpack_archive(assemble(models["cosine"].artifact, base, tmp_path / "model.zip"), tmp_path / "whole")
    with pytest.raises((OSError, ValueError)):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole", local_files_only=True)
    assert open_session(tmp_path / "whole" / ONNX, 1).get_outputs()[0].name == "logits"


# ----------------------------------------------------------------------------------------------------------------- int8


@pytest.fixture(scope="module")
def in_int8(models: dict[str, Exported]) -> Path:
    """An artifact of so many texts that int8 may be served."""
    model = models["lora"]
    export_artifact(model.run, model.prepared, model.fitted, dataset_sha256=None, int8_texts=60)
    return model.artifact


def test_in_int8_an_answer_does_not_depend_on_whose_rows_share_the_pass(
    in_int8: Path, models: dict[str, Exported], base: Path
) -> None:
    assert read_description(in_int8).serving.format == "onnx-int8"
    shared = Shared(OnnxEngine(1))
    own = load_classifier(in_int8, base, shared)
    assert own.session is shared.session(base / INT8)
    strangers = [load_classifier(models[name].artifact, base, shared) for name in ("rank 2", "adalora")]
    encodings = own.tokenize(TEXTS)
    alone = [softmax(own.read(own.encode([encoding])))[0] for encoding in encodings]
    chance = random.Random(6)
    for _ in range(20):
        order = chance.sample(range(len(TEXTS)), k=8)
        networks = [own if place % 2 == 0 else chance.choice(strangers) for place in range(8)]
        answers = softmax(own.read(own.encode([encodings[i] for i in order], networks=networks)))
        for place in range(0, 8, 2):
            np.testing.assert_allclose(answers[place], alone[order[place]], rtol=0, atol=0.02)


# ------------------------------------------------------------------------------------------------------------- stacking


def test_rows_with_one_adapter_copy_nothing() -> None:
    adapter = {"a": np.ones((1, 4, 2), np.float32)}
    assert stack_adapters([adapter, adapter])["a"] is adapter["a"]


def test_a_layer_that_no_row_of_a_pass_adapts_has_rank_0() -> None:
    none, other = {"a": np.ones((1, 0, 2), np.float32)}, {"a": np.ones((1, 0, 2), np.float32)}
    assert stack_adapters([none, other])["a"].shape == (2, 0, 2)


def test_lower_ranks_are_filled_up_with_zeros() -> None:
    low, high = {"a": np.ones((1, 1, 2), np.float32)}, {"a": np.full((1, 3, 2), 2, np.float32)}
    for _ in range(2):  # the second finds what the first has left
        stacked = stack_adapters([low, high, low])["a"]
        assert stacked.tolist() == [[[1, 1], [0, 0], [0, 0]], [[2, 2]] * 3, [[1, 1], [0, 0], [0, 0]]]


def test_torch_runs_rows_of_many_models_in_one_pass_as_onnxruntime_does(
    models: dict[str, Exported], base: Path
) -> None:
    session = OnnxBackend(base / ONNX, 1)
    exact = {name: OnnxClassifier(model.artifact, base, session) for name, model in models.items()}
    cache = ModelCache(10**9, TorchEngine("cpu", 1))
    served = {name: cache.get(name, lambda model=model: (model.artifact, base)) for name, model in models.items()}  # type: ignore[misc]
    for names in (["lora"] * 3, list(models), [*models, "queries"]):  # of one model, whose adapter all have; of several
        networks, rows = [served[name] for name in names], served["lora"].tokenize(TEXTS[: len(names)])
        found = networks[0].encode(rows, networks=networks)
        wanted = exact["lora"].encode(rows, networks=[exact[name] for name in names])
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
