"""What a base model's folder must be before any library reads it. Torch-free, standard library alone.

Weights in pickles run code as they are read, configs can name code to fetch and run, and a header that lies makes a
reader ask for memory. So names, keys and headers are looked at first, by nothing but this page.

As a program it limits itself: python -m ml.base_folder FOLDER. It prints what is wrong as JSON, and nothing else.
"""

import json
import math
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml.process_limits import limit_process

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"

MAX_HEADER_BYTES = 1_000_000
MAX_TENSORS = 5_000
MAX_JSON_BYTES = 50_000_000  # the largest tokenizers have 20
MAX_FILES = 100
MEMORY_BYTES = 2_000_000_000
CPU_SECONDS = 60

# Names by their end, or whole. What is not here is refused, whatever it is.
_PLAIN = (".json", ".txt", ".md", ".model")
_NAMES = {WEIGHTS, ".gitattributes", ".gitignore", "LICENSE", "NOTICE", "README"}
_ELEMENT_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1
}  # fmt: skip
_ADAPTER = "adapter_config.json"
# The one key that transformers itself writes with an underscore, and reads as nothing but a name.
_HARMLESS = {"_name_or_path"}
# Of the JSON files, those in which transformers looks for classes.
_READ_BY_TRANSFORMERS = {CONFIG, "tokenizer_config.json"}
_NAMES_CODE = {"auto_map", "attn_implementation", "custom_pipelines", "experts_implementation", "trust_remote_code"}
# Below these, keys are labels.
_OF_LABELS = {"label2id", "id2label"}


class UnfitFolderError(Exception):
    """A folder that is no base model, or not only one. The message says what to do about it."""


def check_base_folder(folder: Path) -> None:
    """Look at everything in a folder. Raises UnfitFolderError with all that is wrong."""
    problems = list(_problems(folder))
    if problems:
        raise UnfitFolderError(f"{folder} cannot be a base model: {'; '.join(problems)}.")


def _problems(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        yield "there is no such folder"
        return
    lacking = [name for name in (WEIGHTS, CONFIG, TOKENIZER) if not (folder / name).is_file()]
    if lacking:
        yield f"it lacks {', '.join(lacking)}"
    yield from _check_names(folder)
    for file in sorted(folder.rglob("*.json")):
        if file.is_file():
            yield from _check_json(file, file.relative_to(folder))
    if (folder / WEIGHTS).is_file():
        yield from _check_weights(folder / WEIGHTS)


def _check_names(folder: Path) -> Iterator[str]:
    real = folder.resolve()
    for count, path in enumerate(sorted(folder.rglob("*"))):
        name = str(path.relative_to(folder))
        if count >= MAX_FILES:
            yield f"it holds more than {MAX_FILES} files"
            return
        if not path.resolve().is_relative_to(real):
            yield f"{name} is a link that leads out of it; put the file itself there"
        elif path.name == _ADAPTER:
            yield f"{name} names another model, which transformers would read in the place of this one. Remove it"
        elif path.is_file() and path.name not in _NAMES and not path.name.endswith(_PLAIN):
            yield f"{name} may not be in it: other files than {WEIGHTS}, JSON and text may hold code. Remove it"
        elif not path.is_file() and not path.is_dir():
            yield f"{name} is neither a file nor a folder"


def _check_json(file: Path, name: Path) -> Iterator[str]:
    if (size := file.stat().st_size) > MAX_JSON_BYTES:
        yield f"{name} has {size:,} bytes, at most {MAX_JSON_BYTES:,} are read"
        return
    if name.name == TOKENIZER:
        return  # its own library reads it, which says so if it is none, and knows no code
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        yield f"{name} is no JSON"
        return
    for key in dict.fromkeys(_keys(content)) if str(name) in _READ_BY_TRANSFORMERS else ():
        if key in _NAMES_CODE or (key.startswith("_") and key not in _HARMLESS):
            yield f"{name} has the key '{key}', which can name code to be run. Remove it"
    if str(name) == CONFIG:
        kind = content.get("model_type") if isinstance(content, dict) else None
        if not isinstance(kind, str) or not re.fullmatch(r"[a-z0-9_-]{1,50}", kind):
            yield f"{name} names no 'model_type'"


def _keys(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        yield from content
        for name, value in content.items():
            if name not in _OF_LABELS:
                yield from _keys(value)
    elif isinstance(content, list):
        for value in content:
            yield from _keys(value)


def _check_weights(file: Path) -> Iterator[str]:
    """The header of a safetensors file: its length in 8 bytes, then JSON with each tensor's type, shape and place."""
    size = file.stat().st_size
    with file.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            yield f"{WEIGHTS} is no safetensors file: its header would have {length:,} bytes, of {size:,} in all"
            return
        raw = source.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_each_once)
        header.pop("__metadata__", None)
        places = sorted((*_place(name, tensor), name) for name, tensor in header.items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        yield f"{WEIGHTS} has a damaged header: {error}"
        return
    if not 1 <= len(places) <= MAX_TENSORS:
        yield f"{WEIGHTS} holds {len(places):,} tensors; 1 to {MAX_TENSORS:,} are read"
    end = 0
    for begin, after, name in places:
        if begin != end:
            yield f"{WEIGHTS} is damaged: '{name}' begins at byte {begin:,}, and what is before it ends at {end:,}"
            return
        end = after
    if end != size - 8 - length:
        yield f"{WEIGHTS} is damaged: its tensors take {end:,} bytes, and it holds {size - 8 - length:,}"


def _place(name: str, tensor: Any) -> tuple[int, int]:
    """Where a tensor begins and ends, which must be as its type and shape say."""
    begin, end = tensor["data_offsets"]
    shape = tensor["shape"]
    if not all(type(one) is int and one >= 0 for one in (begin, end, *shape)):
        raise ValueError(f"'{name}' has a shape or a place that is no whole number")
    if end - begin != math.prod(shape) * _ELEMENT_BYTES[tensor["dtype"]]:
        raise ValueError(f"'{name}' takes other than its shape {shape} of {tensor['dtype']}")
    return begin, end


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def main() -> None:
    """Check the folder that is named, within limits."""
    limit_process(resource.RLIMIT_AS, MEMORY_BYTES)
    limit_process(resource.RLIMIT_CPU, CPU_SECONDS)
    limit_process(resource.RLIMIT_FSIZE, 0)  # it writes nothing
    try:
        check_base_folder(Path(sys.argv[1]))
        problem = None
    except (UnfitFolderError, OSError, MemoryError) as error:
        problem = str(error) or type(error).__name__
    sys.stdout.write(json.dumps({"problem": problem}))


if __name__ == "__main__":
    main()
