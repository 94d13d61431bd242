"""Answering texts from an artifact with onnxruntime. Torch-free."""
