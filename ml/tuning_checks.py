"""A tuning meets a base model: what was left open is filled in, what cannot work is refused. Torch-free."""

from collections.abc import Sequence
from typing import Any

from ml.specs.errors import did_you_mean, refuse
from ml.specs.facts import BaseFacts
from ml.specs.job import Setup
from ml.specs.tuning import (
    ATTENTION_OUTPUTS,
    FEED_FORWARD_OUTPUTS,
    KEYS,
    PREFIXABLE,
    VALUES,
    AdapterTuning,
    FrozenTuning,
    FullTuning,
    Ia3Tuning,
    PrefixTuning,
    PromptTuning,
    TopLayersTuning,
    Tuning,
)


def resolve_tuning(spec: Setup, base: BaseFacts) -> Tuning:
    """The tuning with nothing left open, every target module by its whole name. Raises SpecError."""
    tuning = spec.tuning
    if isinstance(tuning, FullTuning):
        _check_parts(tuning, base)
        return tuning
    if isinstance(tuning, FrozenTuning):
        if spec.training.compile:
            raise refuse(
                "/training/compile",
                "tuning 'frozen' trains a head alone, and there is nothing in it to compile. Leave 'compile' out.",
            )
        return tuning
    if isinstance(tuning, PromptTuning | PrefixTuning):
        _check_virtual_tokens(tuning, spec, base)
        return tuning
    if not base.linear_layers:
        raise refuse(
            "/tuning/type",
            f"'{tuning.type}' is for encoders of layers that can be told apart, and base model '{base.name}' "
            f"({base.model_type}) has none such. Use full, frozen or prompt.",
            "unknown_architecture",
        )
    if isinstance(tuning, TopLayersTuning):
        if tuning.layers > base.layers:
            raise refuse(
                "/tuning/layers",
                f"'layers' is {tuning.layers}, and base model '{base.name}' has {base.layers}. Take at most as many, "
                "or tuning 'full'.",
            )
        return tuning
    targets: dict[str, Any] = {
        field: _whole_names(field, getattr(tuning, field) or _targets_of(tuning, field, base), base)
        for field in ("target_modules", "feedforward_modules")
        if field in type(tuning).model_fields
    }
    return tuning.model_copy(update=targets)


def _check_parts(tuning: FullTuning, base: BaseFacts) -> None:
    for place, part in enumerate(tuning.freeze):
        if part not in base.parts:
            raise refuse(
                f"/tuning/freeze/{place}",
                f"base model '{base.name}' has no part '{part}'.{did_you_mean(part, base.parts)} "
                f"There are: {', '.join(base.parts)}.",
                "unknown_part",
            )


def _check_virtual_tokens(tuning: PromptTuning | PrefixTuning, spec: Setup, base: BaseFacts) -> None:
    if tuning.type == "prefix" and base.model_type not in PREFIXABLE:
        raise refuse(
            "/tuning/type",
            f"'prefix' needs an encoder that takes keys and values beside a text, and base model '{base.name}' is a "
            f"'{base.model_type}'. It is for: {', '.join(PREFIXABLE)}. Use prompt.",
            "unknown_architecture",
        )
    length = spec.training.max_length
    if tuning.virtual_tokens + length > base.max_length:
        raise refuse(
            "/tuning/virtual_tokens",
            f"{tuning.virtual_tokens} virtual tokens and training.max_length {length} are more than the "
            f"{base.max_length} tokens that base model '{base.name}' reads. Take fewer of either.",
        )


def _targets_of(tuning: Tuning, field: str, base: BaseFacts) -> Sequence[str]:
    """The target modules of a tuning that names none."""
    if isinstance(tuning, AdapterTuning):
        return _known(field, base, ATTENTION_OUTPUTS, FEED_FORWARD_OUTPUTS)
    if isinstance(tuning, Ia3Tuning):
        return _known(field, base, *((KEYS, VALUES) if field == "target_modules" else (FEED_FORWARD_OUTPUTS,)))
    return base.linear_layers


def _known(field: str, base: BaseFacts, *wanted: Sequence[str]) -> list[str]:
    """The base's own name for each of these linear layers."""
    found = [name for names in wanted for name in names if name in base.linear_layers]
    if len(found) < len(wanted):
        raise refuse(
            f"/tuning/{field}",
            f"which of the linear layers of base model '{base.name}' ({base.model_type}) are meant has to be said: "
            f"set '{field}'. Each of its layers has: {', '.join(base.linear_layers)}.",
            "unknown_architecture",
        )
    return found


def _whole_names(field: str, given: Sequence[str], base: BaseFacts) -> list[str]:
    """The linear layers that are called so, else those whose names end so."""
    found: list[str] = []
    for place, name in enumerate(given):
        named = [layer for layer in base.linear_layers if layer == name]
        named = named or [layer for layer in base.linear_layers if layer.endswith(f".{name}")]
        if not named:
            raise refuse(
                f"/tuning/{field}/{place}",
                f"base model '{base.name}' has no linear layer '{name}'.{did_you_mean(name, base.linear_layers)} "
                f"Each of its layers has: {', '.join(base.linear_layers)}.",
                "unknown_module",
            )
        found += named
    return list(dict.fromkeys(found))
