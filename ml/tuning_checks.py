"""A tuning meets a base model: what was left open is filled in, what cannot work is refused. Torch-free."""

from ml.specs.errors import did_you_mean, refuse
from ml.specs.facts import BaseFacts
from ml.specs.job import Setup
from ml.specs.tuning import FrozenTuning, FullTuning, LoraTuning, TopLayersTuning, Tuning, is_named


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
    if isinstance(tuning, LoraTuning):
        return tuning.model_copy(update={"target_modules": _resolve_targets(tuning.target_modules, base)})
    return tuning


def _resolve_targets(given: list[str] | None, base: BaseFacts) -> list[str]:
    if given is None:
        return list(base.linear_layers)
    for place, target in enumerate(given):
        if not any(is_named(layer, target) for layer in base.linear_layers):
            raise refuse(
                f"/tuning/target_modules/{place}",
                f"base model '{base.name}' has no linear layer '{target}'.{did_you_mean(target, base.linear_layers)} "
                f"Each of its layers has: {', '.join(base.linear_layers)}.",
                "unknown_module",
            )
    return given
