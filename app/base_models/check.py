"""Looks at a registered folder in a child process with limits, before anything here reads it."""

import json
import subprocess
import sys
from pathlib import Path

from app.errors import UnfitBaseError

TIMEOUT_SECONDS = 120


def check_registered(name: str, folder: Path) -> None:
    """Raise UnfitBaseError where the folder is no base model, or holds more than one should."""
    if not folder.is_dir():
        raise UnfitBaseError(
            f"MINIMAND_BASE_MODELS, '{name}': there is no folder {folder}. One that is named hf:… is fetched by "
            "`minimand fetch`."
        )
    command = [sys.executable, "-P", "-m", "ml.base_folder", str(folder)]
    try:
        child = subprocess.run(command, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)
        problem = json.loads(child.stdout)["problem"]
    except subprocess.TimeoutExpired:
        problem = f"{folder} could not be looked through within {TIMEOUT_SECONDS} s."
    except ValueError:
        problem = f"looking through {folder} ended with status {child.returncode}: it takes more than a base model may."
    if problem is not None:
        raise UnfitBaseError(f"MINIMAND_BASE_MODELS, '{name}': {problem}")
