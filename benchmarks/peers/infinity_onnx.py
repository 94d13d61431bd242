"""infinity over a folder's ONNX file: `python infinity_onnx.py MAX_LENGTH v2 --model-id FOLDER …`, as infinity takes.

Of itself it looks for the ONNX file by an absolute name, which is then taken for one in the folder; it cuts no text.
"""

import functools
import sys
from pathlib import Path
from typing import Any

from infinity_emb import cli
from infinity_emb.transformer.classifier import optimum

FILE = "model.onnx"
make_pipeline = optimum.pipeline


def make_cutting_pipeline(*arguments: Any, **options: Any) -> Any:
    """transformers' pipeline, cutting texts."""
    return functools.partial(make_pipeline(*arguments, **options), truncation=True, max_length=max_length)


if __name__ == "__main__":
    max_length = int(sys.argv.pop(1))
    optimum.get_onnx_files = lambda **_: Path(FILE)
    optimum.pipeline = make_cutting_pipeline
    cli.cli()
