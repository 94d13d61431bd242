"""A spare: a trainer that does its imports before there is work, and then waits to be told its run directory.

It knows nothing of runs. Once told, it is what `python -m ml.training RUN_DIR` would have been by then.
"""

import importlib
import os
from pathlib import Path
from queue import SimpleQueue

# The first network asks for modeling_utils, which weighs as much as all the rest.
NEEDED = ("ml.training.compare", "ml.training.dry_run", "ml.training.export", "transformers.modeling_utils")


def wait_for_work(heard: "SimpleQueue[bytes]") -> Path:
    """Import what runs need, then return the run directory that is heard. From then on all output goes to its log."""
    for module in NEEDED:
        importlib.import_module(module)
    run_directory = Path(os.fsdecode(heard.get().removesuffix(b"\n")))
    with (run_directory / "log.txt").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    return run_directory
