"""A network's passes in training steps, compiled by torch.compile.

What is measured, checkpointed and exported is the network itself. It knows no data: who calls it pads to few lengths.
"""

from typing import cast

import torch
from torch import Tensor

from ml.models.classifier import NativeClassifier
from ml.models.outputs import Outputs
from ml.specs.errors import refuse

BACKEND = "inductor"

# Torch compiles anew for each, for seconds to minutes, and gives up after 8.
LENGTHS = 6


class CompiledNetwork:
    """Called as the network is. Its answers differ in the last bits: what was fused is rounded less often."""

    def __init__(self, network: NativeClassifier) -> None:
        from torch import _dynamo  # slow to import, and few need it

        self._network = network
        self._compiled = torch.compile(network, backend=BACKEND, dynamic=False)
        self._mark_dynamic, self._failures = _dynamo.maybe_mark_dynamic, _dynamo.exc.BackendCompilerFailed

    def __call__(self, **inputs: Tensor) -> Outputs:
        """See `NativeClassifier.forward`. Raises SpecError where nothing can be compiled."""
        if len(inputs["input_ids"]) == 1:  # torch would compile each length once more for it
            return cast("Outputs", self._network(**inputs))
        for tensor in inputs.values():
            self._mark_dynamic(tensor, 0)
        try:
            return cast("Outputs", self._compiled(**inputs))
        except self._failures as error:
            said = " ".join(str(error.inner_exception).split())[:300]
            raise refuse(
                "/training/compile",
                f"the network could not be compiled: {said}. torch.compile needs a C++ compiler and Python's headers "
                "where the worker runs: install them (g++, python3-dev), or leave 'compile' out.",
                "cannot_compile",
            ) from error
