"""The files that onnxruntime runs, on a GPU by torch. Nothing imports it but what was asked for a GPU."""
