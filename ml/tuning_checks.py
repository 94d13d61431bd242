"""A tuning meets a base model: what was left open is filled in, what cannot work is refused. Torch-free."""

from ml.specs.errors import refuse
from ml.specs.facts import BaseFacts
from ml.specs.job import Setup
from ml.specs.tuning import FrozenTuning, FullTuning, TopLayersTuning, Tuning


def resolve_tuning(spec: Setup, base: BaseFacts) -> Tuning:
    """The tuning with nothing left open. Raises SpecError."""
    tuning = spec.tuning
    if isinstance(tuning, FullTuning | FrozenTuning):
        return tuning
    if not base.linear_layers:
        raise refuse(
            "/tuning/type",
            f"'{tuning.type}' is for encoders of layers that can be told apart, and base model '{base.name}' "
            f"({base.model_type}) has none such. Use full or frozen.",
            "unknown_architecture",
        )
    if isinstance(tuning, TopLayersTuning) and tuning.layers > base.layers:
        raise refuse(
            "/tuning/layers",
            f"'layers' is {tuning.layers}, and base model '{base.name}' has {base.layers}. Take at most as many, or "
            "tuning 'full'.",
        )
    return tuning
