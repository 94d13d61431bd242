"""One zip that holds all a model needs elsewhere. A head that shares its encoder is joined with it first."""

import json
import zipfile
from pathlib import Path

from ml.artifact.description import DESCRIPTION, HEAD, ONNX, read_description
from ml.artifact.join import join_head
from ml.artifact.tokenizer import load_tokenizer

_COMPRESSED = {".json", ".txt", ".md"}  # weights don't shrink
README = "README.md"


def assemble(artifact: Path, runtime: Path, target: Path) -> Path:
    """Write `target`: the files of both folders, with one ONNX file from texts' ids to logits."""
    description = read_description(artifact)
    files = {path.name: path for folder in (runtime, artifact) for path in sorted(folder.iterdir())}
    files.pop("manifest.json", None)
    if description.head == "linear":
        joined = target.with_suffix(".onnx")
        join_head(runtime / ONNX, artifact / HEAD, joined)
        files[ONNX] = joined
        cut = target.with_suffix(".tokenizer.json")  # the shared one cuts nowhere
        load_tokenizer(runtime, description.max_length).save(str(cut))
        files["tokenizer.json"] = cut
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, path in sorted(files.items()):
            kind = zipfile.ZIP_DEFLATED if path.suffix in _COMPRESSED else zipfile.ZIP_STORED
            archive.write(path, name, kind)
        archive.writestr(README, _readme(description.loads_in_transformers, description.inputs, description.labels))
    return target


def _readme(loads_in_transformers: bool, inputs: list[str], labels: list[str]) -> str:
    loading = (
        "`AutoModelForSequenceClassification.from_pretrained(folder)` loads it, with the same logits."
        if loads_in_transformers
        else "`AutoModelForSequenceClassification` cannot express it: the encoder was frozen and its last layer is "
        "averaged over the tokens before a linear head. Use the ONNX file."
    )
    return (
        f"# A Minimand classifier\n\n{loading}\n\n"
        f"`{ONNX}` takes {', '.join(f'`{name}`' for name in inputs)} (int64, batch × length) and returns logits "
        f"(batch × {len(labels)}). `tokenizer.json` makes the ids; `{DESCRIPTION}` says the rest.\n\n"
        f"Labels, in the order of the logits: {json.dumps(labels, ensure_ascii=False)}\n"
    )
