"""A model that a job trains further: its encoder is where the job begins, and its head's rows come along by label.

It knows an artifact and a new network, not how either is trained.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ml.artifact.description import HEAD, Description, read_description
from ml.base_folder import WEIGHTS
from ml.models.classifier import FeatureHead, NativeClassifier
from ml.models.heads import SharedHead
from ml.specs.losses.auxiliary import SOFTMAX_READINGS
from ml.tasks.build import TaskState

# Readings with an output for each label.
_BY_LABEL = SOFTMAX_READINGS | {"sigmoid", "multi_scores"}


@dataclass(frozen=True)
class Start:
    """The artifact of the model that is trained further."""

    folder: Path
    description: Description

    @classmethod
    def read(cls, folder: Path) -> "Start":
        """Of a folder."""
        return cls(folder, read_description(folder))

    def begin(self, network: NativeClassifier | FeatureHead, state: TaskState) -> str:
        """Bring the rows of its head into the network's: those of labels that both know. Returns what was done.

        The rows of new labels are drawn from the seed, as a new head is.
        """
        head = network.head
        if isinstance(head, nn.Linear):
            head.reset_parameters()  # what was loaded beside the encoder may stand under other labels
        found = self._read_head(network)
        places = self._places(state)
        if found is None or not places:
            return "the encoder goes on from there, and the head begins anew: it is read in another way"
        weight, bias = found
        new, old = (torch.tensor(side) for side in zip(*places, strict=True))
        with torch.no_grad():
            if isinstance(head, SharedHead):
                head.score.weight.copy_(weight[:1])
                head.start_at(bias)
            elif isinstance(head, nn.Linear):
                head.weight[new] = weight[old]
                head.bias[new] = bias[old]
        if not state.labels:
            return "encoder and head go on from there"
        before = self.description.task.labels
        added = [label for label in state.labels if label not in before]
        gone = [label for label in before if label not in state.labels]
        said = f"encoder and head go on from there; {len(state.labels) - len(added)} labels are known"
        said += f", new: {', '.join(added)}" if added else ""
        return said + (f", left out: {', '.join(gone)}" if gone else "")

    def _places(self, state: TaskState) -> list[tuple[int, int]]:
        """Outputs of the new head, each with the one of ours that it goes on from."""
        ours = self.description.task
        is_read_alike = ours.reading == state.reading or {ours.reading, state.reading} <= SOFTMAX_READINGS
        if not is_read_alike or ours.quantiles != state.quantiles:
            return []
        if state.reading in _BY_LABEL:
            index = {label: place for place, label in enumerate(ours.labels)}
            return [(place, index[label]) for place, label in enumerate(state.labels) if label in index]
        if ours.labels != state.labels:
            return []
        width = len(self.description.probe.logits[0])
        return [(place, place) for place in range(width)]

    def _read_head(self, network: NativeClassifier | FeatureHead) -> tuple[Tensor, Tensor] | None:
        """weight (H, D) and bias (H,); None where our head is no linear layer over the same features."""
        kind, is_adapted = self.description.head, self.description.is_adapted
        is_alike = isinstance(network, NativeClassifier) == (is_adapted or kind == "native")
        if kind == "cosine" or not is_alike or not isinstance(network.head, nn.Linear | SharedHead):
            return None
        is_whole = isinstance(network, NativeClassifier) and not is_adapted
        file, prefix = (WEIGHTS, f"{network.head_name}.") if is_whole else (HEAD, "")
        with safe_open(self.folder / file, "pt") as tensors:
            return tensors.get_tensor(f"{prefix}weight"), tensors.get_tensor(f"{prefix}bias")
