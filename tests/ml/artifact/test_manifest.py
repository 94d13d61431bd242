"""A folder is whole or not there, and damage to any file of it is found."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors import SafetensorError

from ml.artifact.manifest import (
    MANIFEST,
    DamagedFolderError,
    DiskFullError,
    folder_bytes,
    manifest_sha256,
    newest_verified,
    publish_folder,
    read_manifest,
    verify_folder,
)
from tests.ml.conftest import Exported
from tests.ml.runs import flip_a_bit

FILES = {"weights.bin": bytes(range(256)) * 40, "config.json": b"{}", "inner/empty": b"", "inner/deep/猫.txt": b"cat"}


def publish(target: Path, **facts: object) -> Path:
    with publish_folder(target, "test", facts) as folder:
        for name, content in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return target


def test_what_was_written_is_there_and_verifies(tmp_path: Path) -> None:
    folder = publish(tmp_path / "made" / "here", step=7)
    manifest = verify_folder(folder)
    assert manifest == read_manifest(folder)
    assert manifest["step"] == 7
    assert set(manifest["files"]) == set(FILES)
    assert folder_bytes(manifest) == sum(map(len, FILES.values()))
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES


def test_nothing_but_the_folder_is_left(tmp_path: Path) -> None:
    publish(tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_the_same_content_has_the_same_digest(tmp_path: Path) -> None:
    first, again, other = (publish(tmp_path / str(i), step=step) for i, step in enumerate((1, 1, 2)))
    assert manifest_sha256(first) == manifest_sha256(again) != manifest_sha256(other)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: … (os error 28)")]
)
def test_a_full_disk_has_a_name_of_its_own_and_leaves_nothing_behind(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(DiskFullError, match="no room on the disk for test target"),
        publish_folder(tmp_path / "target", "test", {}) as folder,
    ):
        (folder / "half").write_bytes(b"written")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), publish_folder(tmp_path / "target", "test", {}) as folder:
        (folder / "half").write_bytes(b"written")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_no_hindrance(tmp_path: Path) -> None:
    left = tmp_path / ".tmp-target"
    left.mkdir()
    (left / "half").write_bytes(b"written")
    assert set(verify_folder(publish(tmp_path / "target"))["files"]) == set(FILES)
    assert not left.exists()


def test_a_folder_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    target = publish(tmp_path / "target", step=1)
    with pytest.raises(OSError, match="not empty"):
        publish(target, step=2)
    assert verify_folder(target)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("name", [name for name, content in FILES.items() if content])
def test_a_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    folder = publish(tmp_path / "target")
    flip_a_bit(folder / name)
    with pytest.raises(DamagedFolderError, match=f"target/{name} is not what was written"):
        verify_folder(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(tmp_path: Path, name: str) -> None:
    folder = publish(tmp_path / "target")
    (folder / name).unlink()
    with pytest.raises(DamagedFolderError, match=f"target/{name} cannot be read"):
        verify_folder(folder)


@pytest.mark.parametrize("size", [0, 100])
def test_a_truncated_file_is_found(tmp_path: Path, size: int) -> None:
    folder = publish(tmp_path / "target")
    os.truncate(folder / "weights.bin", size)
    with pytest.raises(DamagedFolderError, match=r"target/weights\.bin"):
        verify_folder(folder)


@pytest.mark.parametrize("content", [b"", b'{"files": {"a"', b"[]", b"null", b'{"files": []}', b"\xff\xfe"])
def test_a_manifest_that_cannot_be_read_is_damage(tmp_path: Path, content: bytes) -> None:
    folder = publish(tmp_path / "target")
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(DamagedFolderError, match="target"):
        verify_folder(folder)


def test_a_missing_manifest_is_damage(tmp_path: Path) -> None:
    folder = publish(tmp_path / "target")
    (folder / MANIFEST).unlink()
    with pytest.raises(DamagedFolderError, match=r"no readable manifest\.json"):
        verify_folder(folder)


@pytest.mark.parametrize("kind", ["exported_full", "exported_frozen"])
def test_damage_to_any_file_of_an_artifact_is_found(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    exported: Exported = request.getfixturevalue(kind)
    for name in verify_folder(exported.artifact)["files"]:
        copy = Path(shutil.copytree(exported.artifact, tmp_path / name))
        flip_a_bit(copy / name)
        with pytest.raises(DamagedFolderError, match="is not what was written"):
            verify_folder(copy)


def test_the_newest_folder_that_verifies_is_found_by_its_step_not_its_name(tmp_path: Path) -> None:
    refused: list[str] = []
    assert newest_verified(tmp_path / "nowhere", refused.append) is None
    for name, step in (("b", 9), ("c", 10), ("a", 11)):
        publish(tmp_path / name, step=step)
    assert newest_verified(tmp_path, refused.append) == tmp_path / "a"
    assert refused == []
    flip_a_bit(tmp_path / "a" / "weights.bin")
    (tmp_path / "c" / MANIFEST).unlink()
    assert newest_verified(tmp_path, refused.append) == tmp_path / "b"
    assert sorted(message[:2] for message in refused) == ["a/", "c "]


def test_a_folder_that_was_never_finished_is_not_looked_at(tmp_path: Path) -> None:
    shutil.copytree(publish(tmp_path / "a", step=1), tmp_path / ".tmp-b")
    manifest = json.loads((tmp_path / ".tmp-b" / MANIFEST).read_text())
    (tmp_path / ".tmp-b" / MANIFEST).write_text(json.dumps({**manifest, "step": 2}))
    assert newest_verified(tmp_path, print) == tmp_path / "a"
