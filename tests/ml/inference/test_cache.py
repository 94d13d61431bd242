"""Models are loaded once, the least recently used goes first, and what models share is loaded and counted once."""

import gc
import random
import shutil
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Encoding

from ml.artifact import manifest
from ml.artifact.description import DESCRIPTION, HEAD, INT8, ONNX, read_description
from ml.artifact.tokenizer import TOKENIZER
from ml.inference.backends import OnnxEngine
from ml.inference.cache import ModelCache, OnceCache
from ml.inference.classifier import OnnxClassifier
from ml.training.export import export_artifact
from ml.training.run import RunDirectory
from tests.ml.conftest import Exported, export
from tests.ml.runs import lay_out, prepare_run
from tests.tiny_base import learnable_rows

ROOM = 10**9


def one_byte(value: object) -> dict[Hashable, int]:
    return {value: 1}


def test_a_value_is_made_once_however_many_ask_at_the_same_time() -> None:
    cache: OnceCache[object] = OnceCache(4, one_byte)
    made: list[object] = []
    together = threading.Barrier(8)

    def make() -> object:
        time.sleep(0.05)
        made.append(object())
        return made[-1]

    def ask() -> object:
        together.wait()
        return cache.get("key", make)

    with ThreadPoolExecutor(8) as threads:
        answers = [future.result() for future in [threads.submit(ask) for _ in range(8)]]
    assert len(made) == 1
    assert all(answer is made[0] for answer in answers)


def test_a_failure_is_told_to_all_who_wait_and_not_kept() -> None:
    cache: OnceCache[str] = OnceCache(4, one_byte)
    calls: list[int] = []
    together = threading.Barrier(8)

    def fail() -> str:
        calls.append(1)
        time.sleep(0.1)
        raise OSError("the file is gone")

    def ask() -> str:
        together.wait()
        return cache.get("key", fail)

    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(ask) for _ in range(8)]
        errors = [future.exception() for future in futures]
    assert all(isinstance(error, OSError) for error in errors)
    assert len(calls) == 1
    assert cache.peek("key") is None
    assert cache.get("key", lambda: "made") == "made"


def test_making_one_value_does_not_hold_up_another() -> None:
    cache: OnceCache[str] = OnceCache(4, one_byte)
    has_begun, may_end = threading.Event(), threading.Event()

    def slow() -> str:
        has_begun.set()
        assert may_end.wait(10)
        return "slow"

    with ThreadPoolExecutor(1) as threads:
        slow_one = threads.submit(cache.get, "slow", slow)
        assert has_begun.wait(10)
        assert cache.get("quick", lambda: "quick") == "quick"
        assert cache.peek("slow") is None
        may_end.set()
        assert slow_one.result(10) == "slow"


def test_the_least_recently_used_goes_first() -> None:
    cache: OnceCache[str] = OnceCache(2, one_byte)
    for key in ("a", "b"):
        cache.get(key, lambda key=key: key)
    cache.get("a", lambda: "never made")
    cache.get("c", lambda: "c")
    assert [cache.peek(key) for key in ("a", "b", "c")] == ["a", None, "c"]
    cache.peek("a")
    cache.get("d", lambda: "d")
    assert [cache.peek(key) for key in ("a", "c", "d")] == ["a", None, "d"]


def test_a_dropped_value_is_made_anew() -> None:
    cache: OnceCache[str] = OnceCache(2, one_byte)
    cache.get("a", lambda: "first")
    cache.drop("a")
    cache.drop("never there")
    assert cache.peek("a") is None
    assert cache.get("a", lambda: "second") == "second"


class Parts:
    """A cache of lists of parts: each name is a part of ten bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.cache: OnceCache[str] = OnceCache(max_bytes, lambda names: dict.fromkeys(names.split(), 10))

    def load(self, *values: str) -> None:
        for value in values:
            self.cache.get(value, lambda value=value: value)

    def loaded(self, *values: str) -> list[bool]:
        return [value in self.cache for value in values]


def test_what_several_values_hold_counts_once_and_as_long_as_one_of_them_is_there() -> None:
    parts = Parts(max_bytes=40)
    parts.load("encoder one", "encoder two", "encoder three")
    assert (parts.loaded("encoder one", "encoder two", "encoder three"), parts.cache.bytes) == ([True] * 3, 40)
    parts.load("encoder four")
    assert (parts.loaded("encoder one", "encoder two", "encoder four"), parts.cache.bytes) == ([False, True, True], 40)
    for value in ("encoder two", "encoder three", "encoder four"):
        parts.cache.drop(value)
    assert parts.cache.bytes == 0


def test_as_many_values_go_as_the_newest_needs_and_it_stays_even_if_it_exceeds_the_bound_alone() -> None:
    parts = Parts(max_bytes=30)
    parts.load("a", "b", "c", "d e")
    assert (parts.loaded("a", "b", "c", "d e"), parts.cache.bytes) == ([False, False, True, True], 30)
    parts.load("f g h i")
    assert (parts.loaded("c", "d e", "f g h i"), parts.cache.bytes) == ([False, False, True], 40)


def test_a_value_dropped_while_it_is_made_is_told_to_who_waits_and_not_kept() -> None:
    parts = Parts(max_bytes=30)
    work: list[Callable[[], None]] = []
    future = parts.cache.start("a", lambda: "a", work.append)
    parts.cache.drop("a")
    work.pop()()
    assert (future.result(0), parts.loaded("a"), parts.cache.bytes) == ("a", [False], 0)


def test_who_stops_waiting_does_not_stop_the_others() -> None:
    parts = Parts(max_bytes=30)
    work: list[Callable[[], None]] = []
    first = parts.cache.start("a", lambda: "a", work.append)
    second = parts.cache.start("a", lambda: "never made", work.append)
    assert not first.cancel()
    work.pop()()
    assert second.result(0) == "a"


@pytest.fixture(scope="module")
def other_head(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Exported:
    """Another head over the same encoder."""
    run = lay_out(tmp_path_factory.mktemp("other"), tuning={"type": "frozen"}, training={"seed": 5})
    return export(run, prepare_run(run, tiny_base))


def test_heads_of_one_base_share_its_session_and_answer_for_themselves(
    exported_frozen: Exported, other_head: Exported
) -> None:
    cache = ModelCache(ROOM, OnnxEngine(1))
    base = exported_frozen.run.base
    first = cache.get("mdl_1", lambda: (exported_frozen.artifact, base))
    second = cache.get("mdl_2", lambda: (other_head.artifact, base))
    assert first.session is second.session
    assert first.tokenizer is second.tokenizer
    encodings = first.tokenize(["where is my parcel"])
    assert abs(first.logits(encodings) - second.logits(encodings)).max() > 0.01


def test_models_of_different_folders_have_sessions_of_their_own(
    exported_full: Exported, exported_frozen: Exported
) -> None:
    cache = ModelCache(ROOM, OnnxEngine(1))
    full = cache.get("mdl_1", lambda: (exported_full.artifact, exported_full.runtime))
    frozen = cache.get("mdl_2", lambda: (exported_frozen.artifact, exported_frozen.runtime))
    assert full.session is not frozen.session


def test_heads_that_int8_suits_share_one_session_and_the_others_another(
    exported_frozen: Exported, other_head: Exported, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path)
    export_artifact(run, exported_frozen.prepared, exported_frozen.fitted, dataset_sha256=None, int8_texts=60)
    assert read_description(run.artifact).serving.format == "onnx-int8"
    cache, base = ModelCache(ROOM, OnnxEngine(1)), exported_frozen.run.base
    # Its encoder is as the others' is, so any folder of it will do.
    folders = [run.artifact, run.artifact, exported_frozen.artifact, other_head.artifact]
    sessions = [cache.get(f"mdl_{i}", lambda folder=folder: (folder, base)).session for i, folder in enumerate(folders)]
    assert sessions[0] is sessions[1] is not sessions[2]
    assert sessions[2] is sessions[3]


def test_a_head_over_an_encoder_without_an_int8_file_is_served_in_float32(
    exported_frozen: Exported, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path)
    export_artifact(run, exported_frozen.prepared, exported_frozen.fitted, dataset_sha256=None, int8_texts=60)
    (run.base / INT8).unlink()
    cache = ModelCache(ROOM, OnnxEngine(1))
    served = cache.get("mdl_1", lambda: (run.artifact, run.base))
    exact = cache.get("mdl_2", lambda: (exported_frozen.artifact, exported_frozen.run.base))
    encodings = served.tokenize(["where is my parcel"])
    np.testing.assert_allclose(served.logits(encodings), exact.logits(encodings), rtol=0, atol=1e-5)


def test_a_loaded_model_is_not_looked_for_again(exported_full: Exported) -> None:
    cache = ModelCache(ROOM, OnnxEngine(1))
    assert cache.peek("mdl_1") is None
    loaded = cache.get("mdl_1", lambda: (exported_full.artifact, exported_full.runtime))

    def never() -> tuple[Path, Path]:
        raise AssertionError("it is loaded already")

    assert cache.get("mdl_1", never) is loaded
    assert cache.peek("mdl_1") is loaded


def test_a_session_goes_with_the_last_model_that_used_it(exported_frozen: Exported, other_head: Exported) -> None:
    cache = ModelCache(ROOM, OnnxEngine(1))
    base = exported_frozen.run.base
    session = weakref.ref(cache.get("mdl_1", lambda: (exported_frozen.artifact, base)).session)
    cache.get("mdl_2", lambda: (other_head.artifact, base))
    cache.drop("mdl_1")
    gc.collect()
    assert session() is not None
    cache.drop("mdl_2")
    gc.collect()
    assert session() is None


def test_a_shared_encoder_is_hashed_and_answers_the_probe_texts_once(
    exported_frozen: Exported, other_head: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    encoded: list[int] = []
    describe, encode = manifest._describe, OnnxClassifier.encode

    def note_file(path: Path, *, flush: bool) -> dict[str, object]:
        hashed.append(path)
        return describe(path, flush=flush)

    def note_rows(classifier: OnnxClassifier, encodings: Sequence[Encoding], **options: bool) -> NDArray[np.float32]:
        encoded.append(len(encodings))
        return encode(classifier, encodings, **options)

    monkeypatch.setattr(manifest, "_describe", note_file)
    monkeypatch.setattr(OnnxClassifier, "encode", note_rows)
    cache = ModelCache(ROOM, OnnxEngine(1))
    base = exported_frozen.run.base
    cache.get("mdl_1", lambda: (exported_frozen.artifact, base))
    assert sorted(path.name for path in hashed if path.parent == base) == [ONNX, TOKENIZER]
    assert encoded
    hashed.clear()
    encoded.clear()
    cache.get("mdl_2", lambda: (other_head.artifact, base))
    assert sorted(path.name for path in hashed) == [HEAD, DESCRIPTION]
    assert encoded == []


def test_a_head_over_a_loaded_encoder_costs_less_than_50_kilobytes(exported_frozen: Exported) -> None:
    cache = ModelCache(ROOM, OnnxEngine(1))
    folders = (exported_frozen.artifact, exported_frozen.run.base)
    cache.get("first", lambda: folders)
    alone = cache.bytes
    tracemalloc.start()
    try:
        for number in range(100):
            cache.get(f"mdl_{number}", lambda: folders)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(f"mdl_{number}" in cache for number in range(100))
    assert held / 100 < (cache.bytes - alone) / 100 < 50_000


def test_models_that_trained_their_encoders_share_a_tokenizer_of_the_same_content(
    exported_full: Exported, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(exported_full.artifact, tmp_path / "copy"))
    cache = ModelCache(ROOM, OnnxEngine(1))
    first = cache.get("mdl_1", lambda: (exported_full.artifact, exported_full.artifact))
    second = cache.get("mdl_2", lambda: (copy, copy))
    assert first.session is not second.session
    assert first.tokenizer is second.tokenizer


def test_threads_that_share_a_tokenizer_get_their_own_texts_ids(exported_full: Exported) -> None:
    cache = ModelCache(ROOM, OnnxEngine(1))
    model = cache.get("mdl_1", lambda: (exported_full.artifact, exported_full.artifact))
    texts = [text * (1 + number % 5) for number, (text, _) in enumerate(learnable_rows(200, seed=3))]
    expected = {text: encoding.ids for text, encoding in zip(texts, model.tokenize(texts), strict=True)}

    def ask(seed: int) -> bool:
        chosen = random.Random(seed).sample(texts, 100)
        return [encoding.ids for encoding in model.tokenize(chosen)] == [expected[text] for text in chosen]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(100)))
