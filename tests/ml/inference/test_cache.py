"""Models are loaded once, the least recently used goes first, and heads of one base share its session."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ml.inference.cache import ModelCache, OnceCache
from tests.ml.conftest import Exported, export
from tests.ml.runs import lay_out, prepare_run


def test_a_value_is_made_once_however_many_ask_at_the_same_time() -> None:
    cache: OnceCache[object] = OnceCache(4)
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
    cache: OnceCache[str] = OnceCache(4)
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
    cache: OnceCache[str] = OnceCache(4)
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
    cache: OnceCache[str] = OnceCache(2)
    for key in ("a", "b"):
        cache.get(key, lambda key=key: key)
    cache.get("a", lambda: "never made")
    cache.get("c", lambda: "c")
    assert [cache.peek(key) for key in ("a", "b", "c")] == ["a", None, "c"]
    cache.peek("a")
    cache.get("d", lambda: "d")
    assert [cache.peek(key) for key in ("a", "c", "d")] == ["a", None, "d"]


def test_a_dropped_value_is_made_anew() -> None:
    cache: OnceCache[str] = OnceCache(2)
    cache.get("a", lambda: "first")
    cache.drop("a")
    cache.drop("never there")
    assert cache.peek("a") is None
    assert cache.get("a", lambda: "second") == "second"


@pytest.fixture(scope="module")
def other_head(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Exported:
    """Another head over the same encoder."""
    run = lay_out(tmp_path_factory.mktemp("other"), tuning={"type": "frozen"}, training={"seed": 5})
    return export(run, prepare_run(run, tiny_base))


def test_heads_of_one_base_share_its_session_and_answer_for_themselves(
    exported_frozen: Exported, other_head: Exported
) -> None:
    cache = ModelCache(4, threads=1)
    base = exported_frozen.run.base
    first = cache.get("mdl_1", lambda: (exported_frozen.artifact, base))
    second = cache.get("mdl_2", lambda: (other_head.artifact, base))
    assert first.session is second.session
    encodings = first.tokenize(["where is my parcel"])
    assert abs(first.logits(encodings) - second.logits(encodings)).max() > 0.01


def test_models_of_different_folders_have_sessions_of_their_own(
    exported_full: Exported, exported_frozen: Exported
) -> None:
    cache = ModelCache(4, threads=1)
    full = cache.get("mdl_1", lambda: (exported_full.artifact, exported_full.runtime))
    frozen = cache.get("mdl_2", lambda: (exported_frozen.artifact, exported_frozen.runtime))
    assert full.session is not frozen.session


def test_a_loaded_model_is_not_looked_for_again(exported_full: Exported) -> None:
    cache = ModelCache(4, threads=1)
    assert cache.peek("mdl_1") is None
    loaded = cache.get("mdl_1", lambda: (exported_full.artifact, exported_full.runtime))

    def never() -> tuple[Path, Path]:
        raise AssertionError("it is loaded already")

    assert cache.get("mdl_1", never) is loaded
    assert cache.peek("mdl_1") is loaded


def test_a_session_goes_with_the_last_model_that_used_it(exported_frozen: Exported, other_head: Exported) -> None:
    cache = ModelCache(4, threads=1)
    base = exported_frozen.run.base
    session = weakref.ref(cache.get("mdl_1", lambda: (exported_frozen.artifact, base)).session)
    cache.get("mdl_2", lambda: (other_head.artifact, base))
    cache.drop("mdl_1")
    gc.collect()
    assert session() is not None
    cache.drop("mdl_2")
    gc.collect()
    assert session() is None
