"""Kept arrays: found by their key alone, whole or not at all, within a limit, and never a reason to fail."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ml.data.cache import ArrayCache, Arrays
from tests.ml.runs import flip_a_bit

KEY = {"rows_sha256": "ab", "max_length": 128, "text_pair": None}


def rows_from(numbers: NDArray[np.int64]) -> Arrays:
    """Two arrays of as many rows, each told by its number."""
    return {"ids": numbers.astype(np.int32), "features": np.repeat(numbers[:, None], 3, 1).astype(np.float32)}


class Bench:
    """A cache over a folder, and how often something was made for it."""

    def __init__(self, folder: Path | None, scratch: Path, max_bytes: int = 10**9) -> None:
        self.folder = folder
        self.scratch = scratch
        scratch.mkdir(exist_ok=True)
        self.made = 0
        self.warnings: list[str] = []
        self.cache = ArrayCache(folder, max_bytes, scratch, self.warnings.append)

    def get(self, key: dict[str, Any] = KEY, rows: int = 5) -> Arrays:
        def make() -> Iterator[Arrays]:
            self.made += 1
            for start in range(0, rows, 2):
                some = np.arange(start, min(start + 2, rows))
                yield rows_from(some)

        return self.cache.get("things", key, make)

    def entries(self) -> list[Path]:
        return sorted(self.folder.glob("*")) if self.folder else []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "cache", tmp_path / "run")


def is_right(arrays: Arrays, rows: int = 5) -> bool:
    expected = np.arange(rows)
    return (
        arrays["ids"].dtype == np.int32
        and arrays["ids"].tolist() == expected.tolist()
        and arrays["features"].dtype == np.float32
        and arrays["features"].tolist() == np.repeat(expected[:, None], 3, 1).tolist()
    )


def test_what_was_made_once_is_found_by_the_next_run(bench: Bench, tmp_path: Path) -> None:
    assert bench.cache.find("things", KEY) is None
    assert is_right(bench.get())
    other = Bench(bench.folder, tmp_path / "other-run")
    assert is_right(other.get())
    assert (bench.made, other.made) == (1, 0)
    found = other.cache.find("things", dict(reversed(KEY.items())))  # the order of a key's words says nothing
    assert found is not None
    assert is_right(found)
    assert not bench.warnings + other.warnings


@pytest.mark.parametrize("change", [{"rows_sha256": "ac"}, {"max_length": 64}, {"text_pair": "b"}, {"version": 2}])
def test_another_key_is_made_anew(bench: Bench, change: dict[str, Any]) -> None:
    bench.get(rows=3)
    assert is_right(bench.get({**KEY, **change}, rows=4), rows=4)
    assert is_right(bench.get(rows=3), rows=3)
    assert bench.made == 2


def test_arrays_cannot_be_written_to(bench: Bench) -> None:
    for arrays in (bench.get(), bench.get()):
        with pytest.raises(ValueError, match="read-only"):
            arrays["ids"][0] = 1


@pytest.mark.parametrize("file", ["ids", "features", "arrays.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["a bit", "cut off", "gone"])
def test_a_damaged_entry_is_not_used_and_is_put_right(bench: Bench, file: str, damage: str) -> None:
    bench.get()
    (entry,) = bench.entries()
    path = entry / file
    if damage == "a bit":
        flip_a_bit(path)
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:-4])
    else:
        path.unlink()
    assert is_right(bench.get())
    assert bench.made == 2
    (warning,) = bench.warnings
    assert "cannot be used" in warning
    assert is_right(bench.get())
    assert bench.made == 2


def test_an_entry_under_anothers_name_is_not_used(bench: Bench) -> None:
    bench.get(rows=3)
    (entry,) = bench.entries()
    bench.get({**KEY, "max_length": 64}, rows=4)
    (other,) = set(bench.entries()) - {entry}
    for file in entry.iterdir():
        file.unlink()
    entry.rmdir()
    other.rename(entry)
    assert is_right(bench.get(rows=3), rows=3)


def test_without_a_folder_arrays_are_made_each_time_and_leave_nothing(tmp_path: Path) -> None:
    bench = Bench(None, tmp_path / "run")
    first = bench.get()
    assert is_right(first)
    assert is_right(bench.get())
    assert bench.made == 2
    assert list(bench.scratch.iterdir()) == []
    assert is_right(first)  # though its file has no name


def test_a_folder_that_cannot_be_written_is_warned_of_and_does_without(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file stands where the folder would be")
    bench = Bench(tmp_path / "cache", tmp_path / "run")
    assert is_right(bench.get())
    (warning,) = bench.warnings
    assert "cannot be kept" in warning


def test_a_disk_that_fills_up_is_warned_of_and_leaves_nothing_half(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert is_right(bench.get())
    assert bench.entries() == []
    assert "no room on the disk" in bench.warnings[0]


def test_a_run_that_is_stopped_on_the_way_leaves_nothing(bench: Bench) -> None:
    def stopped() -> Iterator[Arrays]:
        yield {"ids": np.arange(3)}
        raise InterruptedByUserError

    class InterruptedByUserError(Exception):
        pass

    with pytest.raises(InterruptedByUserError):
        bench.cache.get("things", KEY, stopped)
    assert bench.entries() == []
    assert is_right(bench.get())


def test_the_least_recently_used_go_first(bench: Bench, tmp_path: Path) -> None:
    keys = [{"number": i} for i in range(4)]
    bench.get(keys[0])
    size = sum(file.stat().st_size for file in bench.entries()[0].iterdir())
    bench.get(keys[1])
    bench.get(keys[2])
    for age, entry in enumerate(bench.entries()):  # in whatever order: all were used long ago
        os.utime(entry, (age, age))
    bench.get(keys[1])
    oldest = min(bench.entries(), key=lambda entry: entry.stat().st_mtime)
    limited = Bench(bench.folder, tmp_path / "run", max_bytes=3 * size + size // 2)
    limited.get(keys[3])
    assert len(limited.entries()) == 3
    assert oldest not in limited.entries()
    for key in (keys[1], keys[3]):
        limited.get(key)
    assert limited.made == 1


def test_arrays_that_are_larger_than_the_limit_serve_the_run_that_made_them(bench: Bench, tmp_path: Path) -> None:
    small = Bench(bench.folder, tmp_path / "run", max_bytes=10)
    assert is_right(small.get())
    assert small.entries() == []
    assert not small.warnings


def test_an_entry_that_goes_while_it_is_read_stays_readable(bench: Bench, tmp_path: Path) -> None:
    bench.get()
    arrays = bench.get()
    Bench(bench.folder, tmp_path / "run", max_bytes=10).get({"number": 1})
    assert bench.entries() == []
    assert is_right(arrays)


def test_several_who_make_the_same_at_once_each_have_it(bench: Bench, tmp_path: Path) -> None:
    benches = [Bench(bench.folder, tmp_path / f"run-{i}") for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert all(is_right(arrays) for arrays in threads.map(Bench.get, benches))
    assert len(bench.entries()) == 1
    assert not [warning for each in benches for warning in each.warnings]
    bench.get()
    assert bench.made == 0


def test_what_a_killed_run_left_is_removed_and_what_a_living_one_makes_is_not(bench: Bench, tmp_path: Path) -> None:
    killed = f"""
import os, signal
from pathlib import Path
import numpy as np
from ml.data.cache import ArrayCache
def make():
    yield {{"ids": np.arange(3)}}
    os.kill(os.getpid(), signal.SIGKILL)
ArrayCache(Path({str(bench.folder)!r}), 10**9, Path({str(tmp_path)!r}), print).get("things", {{}}, make)
"""
    subprocess.run([sys.executable, "-c", killed], check=False, cwd=Path(__file__).parents[3])
    assert len(bench.entries()) == 1

    def make() -> Iterator[Arrays]:
        yield rows_from(np.arange(5))
        assert is_right(Bench(bench.folder, tmp_path / "run").get({"number": 1}))  # sweeps

    assert is_right(bench.cache.get("things", KEY, make))
    assert len(bench.entries()) == 2
    assert not any(entry.name.startswith(".") for entry in bench.entries())
