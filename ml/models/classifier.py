"""The networks: tokens to logits, by the base model's own classification class or by mean pooling and a linear head.

They know no loss and no data. The head always trains; it is new, and drawn from the seed that is set before.
"""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from ml.models.outputs import Outputs


def load_native(base: Path, labels: tuple[str, ...], dropout: float | None) -> "NativeClassifier":
    """A base model under its own sequence-classification head, every parameter trainable, float32."""
    config = _read_config(base, dropout)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    return NativeClassifier(
        AutoModelForSequenceClassification.from_pretrained(
            base, config=config, local_files_only=True, dtype=torch.float32, use_safetensors=True
        )
    )


def load_encoder(base: Path) -> "MeanPooledEncoder":
    """A base model that turns a text into one vector, in eval mode, nothing trainable."""
    config = _read_config(base, None)
    model = AutoModel.from_pretrained(
        base, config=config, local_files_only=True, dtype=torch.float32, use_safetensors=True
    )
    return MeanPooledEncoder(model.eval().requires_grad_(False))


class NativeClassifier(nn.Module):
    """The class that `AutoModelForSequenceClassification` picks: what we save, it loads."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model  # transformers is untyped

    def forward(self, **inputs: Tensor) -> Outputs:
        """input_ids, attention_mask and, where the model has it, token_type_ids: (B, L) int64 → logits (B, C)."""
        return Outputs(self.model(**inputs).logits)


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


class LinearHead(nn.Module):
    """Features to logits."""

    def __init__(self, features: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(features, classes)

    def forward(self, *, features: Tensor) -> Outputs:
        """features: (B, D) → logits (B, C)."""
        return Outputs(self.linear(self.dropout(features)))


def _read_config(base: Path, dropout: float | None) -> Any:
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    if dropout is not None:
        for name in _DROPOUTS:
            if getattr(config, name, None) is not None:
                setattr(config, name, dropout)
    return config


# What the model families call their dropout probabilities.
_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
    "pooler_dropout",
    "embedding_dropout",
    "mlp_dropout",
)
