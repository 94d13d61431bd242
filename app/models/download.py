"""One zip that holds all a model needs elsewhere. What shares a network is joined with it first."""

import json
import zipfile
from pathlib import Path

from ml.artifact.description import ADAPTER, DESCRIPTION, HEAD, INT8, ONNX, Description, read_description
from ml.artifact.join import join_head
from ml.artifact.merge import merge_graph, merge_weights
from ml.artifact.tokenizer import load_tokenizer
from ml.base_folder import CONFIG, WEIGHTS

_COMPRESSED = {".json", ".txt", ".md"}  # weights don't shrink
README = "README.md"


def assemble(artifact: Path, runtime: Path, target: Path) -> Path:
    """Write `target`: the files of both folders, with one ONNX file from texts' ids to logits."""
    description = read_description(artifact)
    files = {path.name: path for folder in (runtime, artifact) for path in sorted(folder.iterdir())}
    files.pop("manifest.json", None)
    if description.serving.format == "onnx-float32":
        files.pop(INT8, None)  # of a shared network, which other models are served over
    if description.is_adapted:
        del files[ADAPTER]
        for name in files.keys() & {ONNX, INT8}:
            merged = target.with_suffix(f".merged.{name}")
            merge_graph(files[name], artifact / ADAPTER, merged)
            files[name] = merged
        files[WEIGHTS] = target.with_suffix(f".{WEIGHTS}")
        merge_weights(artifact, runtime, files[WEIGHTS])
        if not description.loads_in_transformers:
            del files[CONFIG]  # transformers would take what it knows, and answer wrongly
    if description.head != "native":
        for name in files.keys() & {ONNX, INT8}:
            joined = target.with_suffix(f".{name}")
            join_head(files[name], artifact / HEAD, joined, is_cosine=description.head == "cosine")
            files[name] = joined
        cut = target.with_suffix(".tokenizer.json")  # the shared one cuts nowhere
        load_tokenizer(runtime, description.max_length).save(str(cut))
        files["tokenizer.json"] = cut
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, path in sorted(files.items()):
            kind = zipfile.ZIP_DEFLATED if path.suffix in _COMPRESSED else zipfile.ZIP_STORED
            archive.write(path, name, kind)
        archive.writestr(README, _readme(description))
    return target


# What transformers' own classes have no place for.
_BEYOND_TRANSFORMERS = {
    "frozen": "the encoder was frozen and its last layer is averaged over the tokens before the head.",
    "adapter": "adapters stand between the encoder's own layers.",
    "prompt": "trained vectors stand among the words of every text.",
    "prefix": "trained keys and values stand before those of every text.",
}


def _why_not(description: Description) -> str:
    reason = _BEYOND_TRANSFORMERS.get(description.spec["tuning"]["type"], "its last layer compares angles.")
    if description.head != "native":
        return reason
    return f"{reason} `model.safetensors` holds what was trained; the rest is as in {description.base_model}."


def _served(description: Description) -> str:
    if description.serving.format == "onnx-float32":
        return ""
    return f"`{INT8}` does so in int8, by onnxruntime's own operators; the service answered from it. "


def _readme(description: Description) -> str:
    loading = (
        "`AutoModelForSequenceClassification.from_pretrained(folder)` loads it, with the same logits."
        if description.loads_in_transformers
        else f"`AutoModelForSequenceClassification` cannot express it: {_why_not(description)} Use the ONNX file."
    )
    takes = ", ".join(f"`{name}`" for name in description.inputs)
    width = description.build_task().width
    return (
        f"# A Minimand classifier\n\n{loading}\n\n"
        f"`{ONNX}` takes {takes} (int64, batch × length) and returns outputs (batch × {width}). "
        f"{_served(description)}`tokenizer.json` makes the ids; `{DESCRIPTION}` says the rest.\n\n"
        f"Divide the outputs by {description.task.temperature:g}, as fitted on the validation part, before you "
        f"read them.\n\nTask: {description.task.type}. Outputs are read as `{description.task.reading}`. "
        f"Labels, in order: {json.dumps(description.task.labels, ensure_ascii=False)}\n"
    )
