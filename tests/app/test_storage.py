"""The file store, in a folder and in memory through fsspec: whole files or none, and nothing outside its root."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from app.storage import CHUNK_BYTES, FileStore


@pytest.fixture
def store(store_url: str, tmp_path: Path) -> FileStore:
    return FileStore(store_url, tmp_path / "cache")


def _write(path: Path, content: bytes = b"content") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    _write(source / "a.bin", b"a")
    _write(source / "manifest.json", b"{}")
    _write(source / "sub" / "z.bin", b"z")
    return source


def _is_remote(url: str) -> bool:
    return url.startswith("memory:")


def test_a_file_that_was_put_is_read_back_in_pieces(store: FileStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * (CHUNK_BYTES // 256) + b"the rest"
    assert not store.exists("data/one.bin")
    store.put_file(_write(tmp_path / "one", content), "data/one.bin")
    assert store.exists("data/one.bin")
    assert [len(piece) for piece in store.stream("data/one.bin")] == [CHUNK_BYTES, 8]
    assert b"".join(store.stream("data/one.bin")) == content
    assert store.local_path("data/one.bin").read_bytes() == content


def test_a_file_in_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    # An object store does that by itself (fsspec's memory does not, and only tests use it).
    store = FileStore(str(tmp_path / "files"), tmp_path / "cache")
    long, short = b"long " * 100_000, b"short"
    sources = [_write(tmp_path / "long", long), _write(tmp_path / "short", short)]
    store.put_file(sources[0], "one.bin")
    done = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(b"".join(store.stream("one.bin")))

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for number in range(40):
            store.put_file(sources[number % 2], "one.bin")
        done.set()
        reading.result()
    assert seen <= {long, short}


def test_a_file_that_cannot_be_read_leaves_nothing_behind(store: FileStore, store_url: str, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        store.put_file(tmp_path / "nowhere", "one.bin")
    assert not store.exists("one.bin")
    if not _is_remote(store_url):
        assert [path for path in Path(store_url).rglob("*") if path.is_file()] == []


def test_a_folder_keeps_its_shape_and_its_manifest_goes_last(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    put_file = store.put_file

    def put_and_note(source: Path, key: str) -> None:
        order.append(key)
        put_file(source, key)

    monkeypatch.setattr(store, "put_file", put_and_note)
    store.put_folder(_folder(tmp_path), "jobs/1/artifact")
    assert order == ["jobs/1/artifact/a.bin", "jobs/1/artifact/sub/z.bin", "jobs/1/artifact/manifest.json"]
    local = store.local_path("jobs/1/artifact")
    found = {path.relative_to(local).as_posix(): path.read_bytes() for path in local.rglob("*") if path.is_file()}
    assert found == {"a.bin": b"a", "manifest.json": b"{}", "sub/z.bin": b"z"}


def test_a_folder_that_broke_off_has_no_manifest(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_file = store.put_file

    def break_off(source: Path, key: str) -> None:
        if key.endswith("z.bin"):
            raise OSError("the disk is full")
        put_file(source, key)

    monkeypatch.setattr(store, "put_file", break_off)
    with pytest.raises(OSError, match="full"):
        store.put_folder(_folder(tmp_path), "artifact")
    assert store.exists("artifact/a.bin")
    assert not store.exists("artifact/manifest.json")


def test_what_is_not_there_is_not_found(store: FileStore) -> None:
    with pytest.raises(FileNotFoundError):
        store.local_path("nowhere")
    assert not store.exists("nowhere")


@pytest.mark.parametrize("key", ["", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "a/../b"])
def test_a_key_that_leads_elsewhere_is_refused(store: FileStore, tmp_path: Path, key: str) -> None:
    source = _write(tmp_path / "source")
    for use in (
        lambda: store.put_file(source, key),
        lambda: store.put_folder(tmp_path, key),
        lambda: store.local_path(key),
        lambda: list(store.stream(key)),
        lambda: store.exists(key),
        lambda: store.children(key),
        lambda: store.delete(key),
        lambda: list(store.files(key)),
    ):
        with pytest.raises(ValueError, match="not a storage key"):
            use()
    assert source.exists()


def test_a_folders_children_are_keys(store: FileStore, tmp_path: Path) -> None:
    assert store.children("jobs/1") == []
    store.put_folder(_folder(tmp_path), "jobs/1/b")
    store.put_file(_write(tmp_path / "one"), "jobs/1/a.bin")
    store.put_file(tmp_path / "one", "jobs/12/c.bin")
    assert store.children("jobs/1") == ["jobs/1/a.bin", "jobs/1/b"]
    for key in store.children("jobs/1"):
        store.delete(key)
    assert store.children("jobs/1") == []
    assert store.exists("jobs/12/c.bin")


def test_a_name_with_dots_in_it_is_a_name(store: FileStore, tmp_path: Path) -> None:
    store.put_file(_write(tmp_path / "source"), "a/..b/c..d")
    assert store.exists("a/..b/c..d")


def test_deleting_removes_a_file_or_a_folder_and_what_was_fetched_of_it(store: FileStore, tmp_path: Path) -> None:
    store.put_file(_write(tmp_path / "one"), "one.bin")
    store.put_folder(_folder(tmp_path), "folder")
    kept = _write(tmp_path / "kept", b"kept")
    store.put_file(kept, "folder2/kept.bin")
    paths = [store.local_path(key) for key in ("one.bin", "folder")]
    for key in ("one.bin", "folder", "never there"):
        store.delete(key)
        assert not store.exists(key)
        with pytest.raises(FileNotFoundError):
            store.local_path(key)
    assert not any(path.exists() for path in paths)
    assert store.local_path("folder2/kept.bin").read_bytes() == b"kept"


def test_files_are_listed_with_size_and_age(store: FileStore, tmp_path: Path) -> None:
    assert list(store.files("nowhere")) == []
    begun = time.time() - 1
    store.put_folder(_folder(tmp_path), "jobs/1")
    store.put_file(_write(tmp_path / "one", b"12345"), "jobs/12/one.bin")
    found = {file.key: file.bytes for file in store.files("jobs/1")}
    assert found == {"jobs/1/a.bin": 1, "jobs/1/manifest.json": 2, "jobs/1/sub/z.bin": 1}
    (one,) = store.files("jobs/12/one.bin")
    assert (one.key, one.bytes) == ("jobs/12/one.bin", 5)
    assert begun < one.changed_at < time.time() + 1


def test_a_file_that_goes_while_files_are_listed_is_left_out(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.bin", "b.bin"):
        store.put_file(_write(tmp_path / "one"), f"datasets/{name}")
    listing = store.files("datasets")
    first = next(listing)
    for file in ("a.bin", "b.bin"):
        if not first.key.endswith(file):
            store.delete(f"datasets/{file}")
    assert list(listing) == []


def test_a_manifest_goes_first(store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_folder(_folder(tmp_path), "artifact")
    remove = store._fs.rm

    def break_off(path: str, recursive: bool) -> None:
        if not path.endswith("manifest.json"):
            raise OSError("killed")
        remove(path, recursive=recursive)

    monkeypatch.setattr(store._fs, "rm", break_off)
    with pytest.raises(OSError, match="killed"):
        store.delete("artifact")
    assert sorted(file.key for file in store.files("artifact")) == ["artifact/a.bin", "artifact/sub/z.bin"]
    store.discard("artifact")  # fails, too, and only says so


def test_a_remote_folder_is_fetched_once_however_many_ask(tmp_path: Path) -> None:
    root = f"memory://{uuid4().hex}"
    FileStore(root, tmp_path / "cache-of-another").put_folder(_folder(tmp_path), "artifact")
    store = FileStore(root, tmp_path / "cache")
    with ThreadPoolExecutor(8) as pool:
        (path,) = set(pool.map(store.local_path, ["artifact"] * 8))
    assert sorted(one.name for one in path.rglob("*") if one.is_file()) == ["a.bin", "manifest.json", "z.bin"]
    before = (path / "a.bin").stat().st_ino
    # What is stored under a key never changes, so nobody looks at the store again.
    fsspec.filesystem("memory").rm(root.removeprefix("memory:/"), recursive=True)
    assert store.local_path("artifact") == path
    assert (path / "a.bin").stat().st_ino == before
    assert list((tmp_path / "cache").rglob(".tmp-*")) == []


def test_a_local_folder_is_read_where_it_lies(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path / "files"), tmp_path / "cache")
    store.put_folder(_folder(tmp_path), "artifact")
    assert store.local_path("artifact") == tmp_path / "files" / "artifact"
    assert not (tmp_path / "cache").exists()
    assert list((tmp_path / "files").rglob(".tmp-*")) == []
