"""Joins a shared encoder and a linear head into one ONNX file, so that a head-only model can travel. Torch-free."""

from pathlib import Path

from safetensors.numpy import load_file


def join_head(encoder: Path, head: Path, target: Path, *, is_cosine: bool) -> None:
    """Write `target`: the encoder's graph, then vectors (B, D) · weightᵀ + bias → logits (B, H).

    is_cosine: the vectors are brought to length 1 first.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(encoder))
    tensors = load_file(head)
    graph = model.graph
    vectors = graph.output[0].name
    graph.initializer.extend(numpy_helper.from_array(tensors[name], f"head.{name}") for name in ("weight", "bias"))
    if is_cosine:
        graph.node.append(helper.make_node("LpNormalization", [vectors], ["unit_vectors"], axis=-1, p=2))
        vectors = "unit_vectors"
    graph.node.append(helper.make_node("Gemm", [vectors, "head.weight", "head.bias"], ["logits"], transB=1))
    del graph.output[:]
    classes = tensors["weight"].shape[0]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes]))
    onnx.checker.check_model(model)
    onnx.save(model, str(target))
