"""A base model's folder is looked at before anything reads it: what could run code, or lies, is refused by name."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ml.base_folder import CONFIG, WEIGHTS, UnfitFolderError, check_base_folder
from ml.bases import bundled_bases

Spoil = Callable[[Path], object]


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def header_of(file: Path) -> dict[str, Any]:
    raw = file.read_bytes()
    found: dict[str, Any] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return found


def write_header(folder: Path, header: Any, *, length: int | None = None, extra: bytes = b"") -> None:
    """The same tensors' bytes under another header."""
    raw = (folder / WEIGHTS).read_bytes()
    body = raw[8 + int.from_bytes(raw[:8], "little") :]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    (folder / WEIGHTS).write_bytes(size.to_bytes(8, "little") + text + body + extra)


def change_tensor(folder: Path, **values: Any) -> None:
    header = header_of(folder / WEIGHTS)
    name = next(name for name, tensor in header.items() if name != "__metadata__" and tensor["data_offsets"][0] == 0)
    write_header(folder, {**header, name: {**header[name], **values}})


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | values))


class Malice:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/minimand-was-run",)


PICKLE = pickle.dumps(Malice())


def link_out(folder: Path) -> None:
    (folder.parent / "outside.json").write_text("{}")
    (folder / "inside.json").symlink_to(folder.parent / "outside.json")


REFUSED: dict[str, tuple[Spoil, str]] = {
    "a pickle": (
        lambda folder: (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Malice())),
        "pytorch_model.bin",
    ),
    "a pickle called weights": (
        lambda folder: (folder / WEIGHTS).write_bytes(pickle.dumps(Malice())),
        "no safetensors",
    ),
    "a checkpoint of torch": (lambda folder: (folder / "model.pt").touch(), "model.pt may not be in it"),
    "code": (lambda folder: (folder / "modeling.py").touch(), "modeling.py may not be in it"),
    "code in a folder": (lambda folder: ((folder / "src").mkdir(), (folder / "src/a.py").touch()), "src/a.py may not"),
    "a library": (lambda folder: (folder / "a.so").touch(), "a.so may not be in it"),
    "a link that leads out": (link_out, "inside.json is a link that leads out"),
    "a pipe": (lambda folder: os.mkfifo(folder / "vocab.txt2.json"), "neither a file nor a folder"),
    "too many files": (lambda folder: [(folder / f"{i}.txt").touch() for i in range(101)], "more than 100 files"),
    "auto_map": (lambda folder: change_config(folder, auto_map={"AutoModel": "x--y.Z"}), "the key 'auto_map'"),
    "an underscore": (
        lambda folder: change_config(folder, _attn_implementation="kernel/repo"),
        "'_attn_implementation'",
    ),
    "auto_map in depth": (lambda folder: change_config(folder, text=[{"auto_map": {}}]), "the key 'auto_map'"),
    "auto_map elsewhere": (
        lambda folder: (folder / "tokenizer_config.json").write_text('{"auto_map": {}}'),
        "tokenizer_config.json has the key 'auto_map'",
    ),
    "another model's name": (
        lambda folder: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}'),
        "adapter_config.json names another model",
    ),
    "no model_type": (lambda folder: change_config(folder, model_type=None), "names no 'model_type'"),
    "a model_type that is a path": (lambda folder: change_config(folder, model_type="../x"), "names no 'model_type'"),
    "a config that is no JSON": (lambda folder: (folder / CONFIG).write_text("{"), "config.json is no JSON"),
    "a config too deep": (lambda folder: (folder / CONFIG).write_text("[" * 100_000), "config.json is no JSON"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"it lacks {WEIGHTS}"),
    "empty weights": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "no safetensors file"),
    "a header of 2 GB": (lambda folder: write_header(folder, {}, length=2 << 30), "2,147,483,648 bytes"),
    "a header that is no JSON": (lambda folder: write_header(folder, b"{" * 50), "a damaged header"),
    "a tensor twice": (
        lambda folder: write_header(folder, b'{"a": {}, "a": {}}'),
        "a key is there twice",
    ),
    "too many tensors": (
        lambda folder: write_header(
            folder, {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(5_001)}
        ),
        "holds 5,001 tensors",
    ),
    "a shape that lies": (lambda folder: change_tensor(folder, shape=[2**40]), "takes other than its shape"),
    "a negative shape": (lambda folder: change_tensor(folder, shape=[-1]), "no whole number"),
    "a place that lies": (
        lambda folder: change_tensor(folder, data_offsets=[2**50, 2**51]),
        "takes other than its shape",
    ),
    "an unknown type": (lambda folder: change_tensor(folder, dtype="OBJECT"), "damaged header"),
    "bytes that are no tensor's": (
        lambda folder: write_header(folder, header_of(folder / WEIGHTS), extra=b"more"),
        "its tensors take",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_run_code_or_lies_is_refused_by_name(folder: Path, name: str) -> None:
    """CVE-2025-32434, CVE-2026-24747, CVE-2026-1839, CVE-2026-31237, CVE-2026-31238, CVE-2025-53002, CVE-2025-27520:
    pickles that are called weights. CVE-2026-4372: a config that names code.
    """
    spoil, said = REFUSED[name]
    check_base_folder(folder)
    spoil(folder)
    with pytest.raises(UnfitFolderError) as caught:
        check_base_folder(folder)
    assert said in str(caught.value)
    assert not Path("/tmp/minimand-was-run").exists()


def test_the_bundled_base_passes(tiny_base: Path) -> None:
    for base in (*bundled_bases().values(), tiny_base):
        check_base_folder(base)


def test_as_a_program_it_answers_in_one_line_of_json_and_loads_no_torch(folder: Path) -> None:
    code = (
        "import sys, ml.base_folder; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'safetensors')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    (folder / "a.pkl").touch()
    for path, problem in [(folder, "a.pkl"), (folder.parent / "none", "no such folder")]:
        ran = subprocess.run([sys.executable, "-m", "ml.base_folder", str(path)], capture_output=True, check=True)
        assert problem in json.loads(ran.stdout)["problem"]


def test_as_a_program_it_keeps_to_a_lower_limit_that_was_set_before(folder: Path) -> None:
    low = "import resource as r; r.setrlimit(r.RLIMIT_CPU, (20, 20)); r.setrlimit(r.RLIMIT_AS, (10**9, 10**9)); "
    code = low + "from ml.base_folder import main; main(); print(r.getrlimit(r.RLIMIT_CPU), r.getrlimit(r.RLIMIT_AS))"
    ran = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, check=True, text=True)
    assert ran.stdout == '{"problem": null}(20, 20) (1000000000, 1000000000)\n'


def test_nothing_of_ours_unpickles_or_trusts_code_from_elsewhere() -> None:
    root = Path(__file__).parents[2]
    words = ("trust_remote_code=", "torch.load(", "import pickle", "weights_only=False", "allow_pickle=True")
    sources = [file for part in ("app", "ml", "workers", "migrations") for file in (root / part).rglob("*.py")]
    assert len(sources) > 100
    assert [(file.name, word) for file in sources for word in words if word in file.read_text()] == []
