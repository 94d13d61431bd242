"""The training program: `python -m ml.training RUN_DIR`."""
