"""The networks: tokens to outputs, by the base model's own classification class or by mean pooling and a head.

They know no loss and no data. The head always trains; it is new, and drawn from the seed that is set before.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from ml.bases import DROPOUTS
from ml.models.frozen_layers import FrozenLayers
from ml.models.heads import as_linear, build_head
from ml.models.outputs import Outputs
from ml.models.shortcuts import take_shortcuts
from ml.models.tuner import Tuner
from ml.models.vocabulary import CompactVocabulary
from ml.specs.losses.base import Head


def load_native(
    base: Path, *, width: int, labels: tuple[str, ...], head: Head, scale: float, dropout: float | None
) -> "NativeClassifier":
    """A base model under its own sequence-classification class, every parameter trainable, float32.

    width: outputs of the head. labels: written into the config where there is one for each output.
    """
    config = read_config(base, dropout)
    config.num_labels = width
    if len(labels) == width:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        config=config,
        local_files_only=True,
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # a model that is trained further has a head of its own
    )
    take_shortcuts(model)
    return NativeClassifier(model, head, scale)


def load_encoder(base: Path) -> "MeanPooledEncoder":
    """A base model that turns a text into one vector, in eval mode, nothing trainable."""
    config = read_config(base)
    model = AutoModel.from_pretrained(
        base, config=config, local_files_only=True, dtype=torch.float32, use_safetensors=True
    )
    return MeanPooledEncoder(model.eval().requires_grad_(False))


class NativeClassifier(nn.Module):
    """The class that `AutoModelForSequenceClassification` picks, with a last layer of our choice."""

    def __init__(self, model: Any, head: Head, scale: float) -> None:
        super().__init__()
        self.model = model  # transformers is untyped
        self.head_name, last = _last_linear(model, model.config.num_labels)
        if head != "linear":
            self.set_head(build_head(head, last.in_features, last.out_features, scale))
        self._features: Tensor | None = None
        self._vocabulary: CompactVocabulary | None = None
        self._still: list[nn.Module] = []
        self.tuner = Tuner()
        self._watch_head()

    @property
    def head(self) -> nn.Module:
        """The last layer."""
        return cast("nn.Module", self.model.get_submodule(self.head_name))

    def set_head(self, head: nn.Module) -> None:
        """Put another last layer in."""
        self.model.set_submodule(self.head_name, head)

    def fold(self) -> bool:
        """Make it a model that transformers can load, with a plain linear last layer. False where it cannot be one."""
        linear = as_linear(self.head)
        if linear is not None and linear is not self.head:
            self.set_head(linear)
            self._watch_head()
        return self.tuner.fold() and linear is not None

    def forward(
        self,
        *,
        other_ids: Tensor | None = None,
        shares: Tensor | None = None,
        hidden: Tensor | None = None,
        **inputs: Tensor,
    ) -> Outputs:
        """input_ids, attention_mask and, where the model has it, token_type_ids: (B, L) int64 → (B, H) and (B, D).

        other_ids (B, L), shares (B, L, 2): the word embeddings are a sum of input_ids' and other_ids' by these shares.
        hidden (B, L, D): what the frozen layers made of input_ids, in the place of these and token_type_ids.
        """
        with ExitStack() as stack:
            if other_ids is not None and shares is not None:
                stack.enter_context(self._mixed_words(other_ids, shares))
            if hidden is not None:
                assert self.frozen_layers is not None, "they made what is given"
                stack.enter_context(self.frozen_layers.left_out())
                inputs["inputs_embeds"] = hidden
            logits = self.model(**inputs).logits
        assert self._features is not None, "the head was called"
        return Outputs(logits, self._features)

    @cached_property
    def frozen_layers(self) -> FrozenLayers | None:
        """The lowest layers, where they do not train. Ask after the network is tuned."""
        return FrozenLayers.of(self.model)

    def hold_still(self, modules: list[nn.Module]) -> None:
        """Keep some modules in eval mode, whatever the rest is in: nothing is dropped out of what does not learn."""
        self._still = modules

    def train(self, mode: bool = True) -> Self:
        """Set all but what is held still to training mode, or all to eval mode."""
        super().train(mode)
        for module in self._still:
            module.eval()
        return self

    def compact_words(self, used: Tensor) -> None:
        """Keep the word embeddings of these ids only, if they train: see `ml.models.vocabulary`."""
        words = self.model.get_input_embeddings()
        if type(words) is nn.Embedding and words.weight.requires_grad:  # another kind may do more than look up
            self._vocabulary = CompactVocabulary(self.model, used)

    def restore_words(self) -> None:
        """Put the others back, as if they had been there all the time."""
        if self._vocabulary is not None:
            self._vocabulary.restore()
            self._vocabulary = None

    @contextmanager
    def watched_words(self) -> Iterator[list[Tensor]]:
        """Collect the word embeddings (B, L, D) of the passes in this block, with their gradient's graph."""
        seen: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen.append(output.requires_grad_())  # where the embeddings are frozen, nothing before here asks for one

        hook = self.model.get_input_embeddings().register_forward_hook(keep)
        try:
            yield seen
        finally:
            hook.remove()

    @contextmanager
    def moved_words(self, by: Tensor) -> Iterator[None]:
        """Add `by` (B, L, D) to the word embeddings of the passes in this block."""
        hook = self.model.get_input_embeddings().register_forward_hook(lambda _m, _i, output: output + by)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _mixed_words(self, other_ids: Tensor, shares: Tensor) -> Iterator[None]:
        def mix(words: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            own, other = shares.to(output.dtype).unbind(-1)  # (B, L) each
            others: Tensor = words.forward(other_ids)  # a call would come back to this hook
            return own[..., None] * output + other[..., None] * others

        hook = self.model.get_input_embeddings().register_forward_hook(mix)
        try:
            yield
        finally:
            hook.remove()

    def _watch_head(self) -> None:
        def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._features = inputs[0]

        self.head.register_forward_pre_hook(keep)


class MeanPooledEncoder(nn.Module):
    """The mean of the last layer over the real tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model  # transformers is untyped

    def forward(self, **inputs: Tensor) -> Tensor:
        """input_ids, attention_mask and, where the model has it, token_type_ids: (B, L) int64 → (B, D)."""
        hidden = self.model(**inputs).last_hidden_state  # (B, L, D)
        mask = inputs["attention_mask"][..., None].to(hidden.dtype)  # (B, L, 1)
        return cast("Tensor", (hidden * mask).sum(1) / mask.sum(1).clamp_min(1.0))


class FeatureHead(nn.Module):
    """Features to outputs."""

    def __init__(self, features: int, outputs: int, head: Head, scale: float, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.head = build_head(head, features, outputs, scale)

    def forward(self, *, features: Tensor) -> Outputs:
        """features: (B, D) → outputs (B, H)."""
        seen = self.dropout(features)
        return Outputs(self.head(seen), seen)


def _last_linear(model: nn.Module, outputs: int) -> tuple[str, nn.Linear]:
    """The layer that makes the logits: the last linear one of that width outside the encoder."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == outputs
    ]
    if not found:
        raise TypeError(f"{type(model).__name__} has no last linear layer with {outputs} outputs")
    return found[-1]


def read_config(base: Path, dropout: float | None = None) -> Any:
    """A base model's config; `dropout` takes the place of every dropout probability in it."""
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    if dropout is not None:
        for name in DROPOUTS:
            if getattr(config, name, None) is not None:
                setattr(config, name, dropout)
    return config
