"""From a trained network to an artifact: the folder that is served, downloaded and verified."""

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ml.artifact.description import (
    ADAPTER,
    HEAD,
    ONNX,
    PROBE_TEXTS,
    SCALING_TEXTS,
    Description,
    Probe,
    Serving,
    Source,
    write_description,
)
from ml.artifact.manifest import publish_folder
from ml.artifact.tokenizer import load_tokenizer
from ml.base_folder import CONFIG
from ml.data.tokens import TokenTable
from ml.inference.backends import OnnxBackend
from ml.inference.classifier import OnnxClassifier, WrongAnswersError
from ml.models.adaptable import AdaptableNetwork, adaptable, axes_of, keeps_rows_apart, read_adapter
from ml.models.classifier import MeanPooledEncoder, NativeClassifier
from ml.models.heads import CosineHead, as_linear
from ml.models.outputs import Outputs
from ml.training.checkpoint import WEIGHTS, contiguous, trainable_state
from ml.training.errors import ExportError
from ml.training.fit import Fitted
from ml.training.prepare import Prepared
from ml.training.quantize import TEXTS, choose_shared_format, write_served_format, write_shared_int8
from ml.training.run import RunDirectory

# float32 logits of the served file are within this of the trained network's; of large logits, this share.
TOLERANCE = 1e-4
_OPSET = 17
_SCALING_LENGTH = 128  # tokens that a text is cut at, whatever a run's own length
# What a tokenizer may consist of besides tokenizer.json.
_TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)


def export_artifact(
    run: RunDirectory,
    prepared: Prepared,
    fitted: Fitted,
    dataset_sha256: str | None,
    source: Source | None = None,
    int8_texts: int = TEXTS,
) -> None:
    """Write RUN_DIR/artifact (and RUN_DIR/base, where others share the network) and check its answers.

    int8_texts: the rows of the dataset that decide whether int8 is served; with fewer it is float32.

    Raises ExportError when onnxruntime answers differently.
    """
    network = prepared.network.cpu().eval()
    probe = prepared_probe(prepared)
    inputs = list(probe.inputs_of(np.arange(1)))
    logits = _probe_logits(prepared, probe)
    start = prepared.corpus.start
    head = "linear" if as_linear(network.head) is not None else "cosine"
    adapter = None
    if prepared.encoder is not None:
        _write_shared(run.base, prepared, prepared.encoder, probe)
    elif isinstance(network, NativeClassifier):
        adapter = _write_adaptable(run.base, prepared, network, probe)
    is_shared = prepared.encoder is not None or adapter is not None
    is_plain = isinstance(network, NativeClassifier) and (network.fold() if adapter is None else head == "linear")
    described = Description(
        task=fitted.state,
        takes_pairs=prepared.corpus.facts.columns.text_pair is not None,
        max_length=prepared.spec.training.max_length,
        pad_id=probe.pad_id,
        inputs=inputs,
        base_model=start.description.base_model if start else prepared.spec.model,
        base_sha256=prepared.base_sha256,
        head=head if is_shared else "native",
        is_adapted=adapter is not None,
        loads_in_transformers=is_plain,
        head_name=network.head_name if isinstance(network, NativeClassifier) else None,
        metrics=fitted.metrics,
        report=fitted.report,
        spec=prepared.spec.model_dump(),
        dataset_sha256=dataset_sha256,
        source=source,
        train_rows=prepared.resolved.train_rows,
        versions={name: version(name) for name in ("minimand", "torch", "transformers", "onnxruntime")},
        serving=Serving(format="onnx-float32", reason="int8 was not tried yet"),
        probe=Probe(logits=logits.tolist(), tolerance=TOLERANCE * max(1.0, float(np.abs(logits).max()))),
    )
    shutil.rmtree(run.artifact, ignore_errors=True)
    with publish_folder(run.artifact, "artifact", {}) as folder:
        write_description(folder, described)
        if is_shared:
            save_file(_head_tensors(network.head), folder / HEAD)
            if adapter is not None:
                save_file(adapter, folder / ADAPTER)
            if isinstance(network, NativeClassifier) and is_plain:
                network.model.config.save_pretrained(folder)
            model = _check_answers(folder, run.base)
            described.serving, described.int8_probe = choose_shared_format(
                run.base, model, prepared, fitted.task, probe, int8_texts
            )
        else:
            assert isinstance(network, NativeClassifier)
            if is_plain:
                network.model.save_pretrained(folder)
            else:  # no config beside it: transformers would take what it knows, and answer wrongly
                save_file(contiguous(trainable_state(network.model)), folder / WEIGHTS)
            _copy_tokenizer(prepared.base, folder, prepared.spec.training.max_length)
            _write_onnx(network, probe, folder / ONNX, output="logits")
            _check_answers(folder, folder)
            described.serving, described.int8_probe = write_served_format(
                folder, prepared, fitted.task, probe, int8_texts
            )
        write_description(folder, described)
    run.tell("message", f"served as {described.serving.format}: {described.serving.reason}")


def _head_tensors(head: nn.Module) -> dict[str, Tensor]:
    """weight (H, D) and bias (H,), so that outputs = x · weightᵀ + bias; of a cosine head for x of length 1."""
    linear = as_linear(head)
    if linear is not None:
        return {"weight": linear.weight.detach().contiguous(), "bias": linear.bias.detach().contiguous()}
    assert isinstance(head, CosineHead)
    weight = head.scale * functional.normalize(head.weight.detach())
    return {"weight": weight.contiguous(), "bias": torch.zeros(len(weight))}


def prepared_probe(prepared: Prepared) -> TokenTable:
    """The probe texts, tokenized as this run's texts are."""
    return prepared.tokens.like(prepared.base, PROBE_TEXTS, prepared.spec.training.max_length)


def _probe_logits(prepared: Prepared, probe: TokenTable) -> NDArray[np.float32]:
    inputs = probe.inputs_of(np.arange(len(PROBE_TEXTS)))
    with torch.no_grad():
        if prepared.encoder is not None:
            outputs = prepared.network(features=prepared.encoder.eval()(**inputs))
        else:
            outputs = prepared.network(**inputs)
    return np.asarray(outputs.logits.numpy(), np.float32)


def _write_adaptable(
    folder: Path, prepared: Prepared, network: NativeClassifier, probe: TokenTable
) -> dict[str, Tensor] | None:
    """Write the network that takes adapters, and return this one's; None where it cannot be had that way."""
    layers = prepared.corpus.base_facts.linear_layers
    adapter = read_adapter(network, layers)
    if adapter is None:
        return None
    with adaptable(network, layers) as shared:
        if not keeps_rows_apart(shared, probe.inputs_of(np.arange(2)), adapter):
            return None
        _write_shared(folder, prepared, shared, probe, adapter)
    return adapter


def _write_shared(
    folder: Path,
    prepared: Prepared,
    network: MeanPooledEncoder | AdaptableNetwork,
    probe: TokenTable,
    adapter: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a network that other models of the base share. Nothing in it depends on the run: all find the same.

    adapter: any, where the network takes one.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with publish_folder(folder, "encoder", {"base_sha256": prepared.base_sha256}) as temporary:
        _copy_tokenizer(prepared.base, temporary, None)
        shutil.copyfile(prepared.base / CONFIG, temporary / CONFIG)
        if isinstance(network, AdaptableNetwork):
            save_file(contiguous(network.base_weights()), temporary / WEIGHTS)
        _write_onnx(network, probe, temporary / ONNX, output="vectors", adapter=adapter)
        longest = min(_SCALING_LENGTH, prepared.corpus.base_facts.max_length)
        write_shared_int8(temporary, prepared.tokens.like(prepared.base, SCALING_TEXTS, longest))


class _Traceable(nn.Module):
    """A network as the tracer wants it: tensors in by position, one tensor out."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.names = names

    def forward(self, *tensors: Tensor) -> Any:
        answer = self.network(**dict(zip(self.names, tensors, strict=True)))
        return answer.logits if isinstance(answer, Outputs) else answer


def _write_onnx(
    network: nn.Module, probe: TokenTable, file: Path, *, output: str, adapter: Mapping[str, Tensor] | None = None
) -> None:
    """Trace a network into an ONNX file with free batch and length. output: what its output is called.

    The tracing exporter takes about 1 s on MiniLM, the newer one 6 s; the answers are checked either way.
    """
    tokens = probe.inputs_of(np.arange(2))
    # Of two rows each; of rank 1 where this one's is 0.
    given = {name: torch.zeros(2, *(extent or 1 for extent in one.shape)) for name, one in (adapter or {}).items()}
    example, axes = tokens | given, {0: "batch", 1: "length"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecation, and of shapes that are traced as constants on purpose
        torch.onnx.export(
            _Traceable(network, list(example)).eval(),
            tuple(example.values()),
            str(file),
            input_names=list(example),
            output_names=[output],
            dynamic_axes={**dict.fromkeys(tokens, axes), **axes_of(given), output: {0: "batch"}},
            opset_version=_OPSET,
            dynamo=False,
        )


def _copy_tokenizer(base: Path, folder: Path, max_length: int | None) -> None:
    """The base's tokenizer; with `max_length`, one that cuts there by itself, for whoever downloads the folder."""
    for name in ("tokenizer.json", *_TOKENIZER_FILES):
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)
    if max_length is None:
        return
    load_tokenizer(base, max_length).save(str(folder / "tokenizer.json"))
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text()) if config.exists() else {}
    config.write_text(json.dumps({**settings, "model_max_length": max_length}, indent=1))


def _check_answers(folder: Path, runtime: Path) -> OnnxClassifier:
    try:
        return OnnxClassifier(folder, runtime, OnnxBackend(runtime / ONNX, torch.get_num_threads()))
    except WrongAnswersError as error:
        raise ExportError(str(error)) from error
