"""Makes an adapter part of the network that it was trained for, so that the model can stand alone. Torch-free."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from ml.artifact.description import ADAPTER, HEAD, read_description
from ml.base_folder import CONFIG, WEIGHTS


def merge_weights(artifact: Path, runtime: Path, target: Path) -> None:
    """Write `target`: the weights by their names in transformers, W + Bᵀ·A; the head with them where it is linear."""
    description = read_description(artifact)
    weights, adapter = load_file(runtime / WEIGHTS), load_file(artifact / ADAPTER)
    for name, tensor in adapter.items():
        layer, _, kind = name.rpartition(".")
        if kind == "lora_A":
            # Exact, and rounded once: so machines that multiply in another order come to the same bits.
            change = adapter[f"{layer}.lora_B"].T.astype(np.float64) @ tensor
            weights[f"{layer}.weight"] = (weights[f"{layer}.weight"] + change).astype(np.float32)
        elif kind != "lora_B":
            weights[name] = np.ascontiguousarray(tensor.T)
    if description.head == "linear":
        weights |= {f"{description.head_name}.{name}": tensor for name, tensor in load_file(artifact / HEAD).items()}
    save_file(weights, target, metadata={"format": "pt"})  # without which transformers refuses it


def write_merged(artifact: Path, runtime: Path, folder: Path) -> Path:
    """Fill a new folder that a training may begin from as from any base, and return it."""
    shutil.copytree(runtime, folder, ignore=shutil.ignore_patterns(WEIGHTS, "*.onnx", "manifest.json"))
    if (artifact / CONFIG).exists():
        shutil.copyfile(artifact / CONFIG, folder / CONFIG)
    merge_weights(artifact, runtime, folder / WEIGHTS)
    return folder


def merge_graph(source: Path, adapter: Path, target: Path) -> None:
    """Write `target`: the ONNX graph of a network that takes adapters with one of them in it.

    Its terms are added to weights in float32, and stand beside those in int8.
    """
    import onnx
    from onnx import numpy_helper

    model, tensors = onnx.load(str(source)), load_file(adapter)
    graph = model.graph
    fixed = {constant.name: constant for constant in graph.initializer}
    readers = {name: node for node in graph.node for name in node.input}
    reads = Counter(name for node in graph.node for name in node.input)
    makers = {name: node for node in graph.node for name in node.output}
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith((".lora_A", ".lora_B"))}
    for down in tensors.keys() - kept.keys():
        if down.endswith(".lora_B"):
            continue
        up = f"{down.removesuffix('A')}B"
        # x · W = product, and then product + (x · Aᵀ) · B = total
        transposed = readers[down]
        first = readers[transposed.output[0]]
        second = readers[first.output[0]]
        total = readers[second.output[0]]
        product = makers[total.input[0]]
        if product.op_type == "MatMul" and reads[product.input[1]] == 1:
            weight = fixed[product.input[1]]
            merged = numpy_helper.to_array(weight) + tensors[down].T @ tensors[up]
            weight.CopyFrom(numpy_helper.from_array(merged, weight.name))
        elif tensors[down].size:
            kept |= {down: tensors[down], up: tensors[up]}
            continue
        product.output[0] = total.output[0]
        for node in (transposed, first, second, total):
            graph.node.remove(node)
    inputs = [given for given in graph.input if given.name not in tensors]
    del graph.input[:]
    graph.input.extend(inputs)
    graph.initializer.extend(numpy_helper.from_array(tensor[None], name) for name, tensor in kept.items())
    onnx.save(model, str(target))
