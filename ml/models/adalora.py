"""AdaLoRA's share in training: ranks that are given to the matrices which use them best (Zhang et al. 2023).

peft allocates; what it has seen of each weight so far is made part of the network's state, so that checkpoints hold it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ml.models.tuner import LowRankTuner
from ml.specs.tuning import AdaLoraTuning


class AdaLoraTuner(LowRankTuner):
    """W + P·Λ·Q: less important singular values are set to 0 as training goes on."""

    def __init__(self, peft: Any, spec: AdaLoraTuning) -> None:
        super().__init__(peft)
        self._spec = spec
        self._config = peft.peft_config["default"]
        peft.model.allocation = _Allocation(peft)

    def end_step(self, step: int, steps: int) -> None:
        """Watch the weights, and take ranks away by the schedule."""
        if steps < 2:
            return
        for weight in self.peft.model.parameters():
            if weight.grad is not None:  # of a step that overflowed float16, and was skipped
                weight.grad.nan_to_num_(0.0, 0.0, 0.0)
        self._config.total_step = steps
        self._config.tinit = int(self._spec.initial * steps)
        # One step at least is watched before the ranks are settled.
        self._config.tfinal = min(int(self._spec.final * steps), steps - 2)
        self.peft.update_and_allocate(step)

    def penalty(self) -> Tensor:
        """γ · mean ‖PᵀP − 1‖ and ‖QQᵀ − 1‖: P and Q stay near orthogonal, so that Λ says what matters."""
        found = [
            torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device))
            for name, weight in self.peft.model.named_parameters()
            if (gram := _gram(name, weight)) is not None
        ]
        return self._spec.orthogonality * torch.stack(found).mean()

    def fold(self) -> bool:
        """Merge."""
        del self.peft.model.allocation
        return super().fold()

    def _read_term(self, layer: Any) -> tuple[Tensor, Tensor]:
        singular = layer.lora_E["default"]  # (r, 1)
        kept = singular[:, 0] != 0
        scale = layer.scaling["default"] / (layer.ranknum["default"] + 1e-5)  # as peft has it
        return (layer.lora_A["default"] * singular)[kept], scale * layer.lora_B["default"][:, kept].T


class _Allocation(nn.Module):
    """Of each weight its smoothed sensitivity and uncertainty, and which singular values are kept."""

    def __init__(self, peft: Any) -> None:
        super().__init__()
        self._allocator, self._config = peft.rankallocator, peft.peft_config["default"]
        self._weights = {name: weight for name, weight in peft.model.named_parameters() if ".lora_" in name}

    def get_extra_state(self) -> Tensor:
        """All in one row, as safetensors takes it."""
        pattern = self._config.rank_pattern or {}
        parts = []
        for name, weight in self._weights.items():
            seen = (self._allocator.exp_avg_ipt, self._allocator.exp_avg_unc)
            parts += [each.get(name, torch.zeros_like(weight)).flatten() for each in seen]
            if ".lora_E." in name:
                parts.append(torch.tensor(pattern.get(name, [True] * len(weight))).to(weight))
        return torch.cat(parts).detach()

    def set_extra_state(self, state: Tensor) -> None:
        """Put it back."""
        pattern, rest = {}, state
        for name, weight in self._weights.items():
            self._allocator.ipt[name] = torch.zeros_like(weight)  # else peft takes the weight for a new one
            for seen in (self._allocator.exp_avg_ipt, self._allocator.exp_avg_unc):
                seen[name] = rest[: weight.numel()].view_as(weight).to(weight.device, copy=True)
                rest = rest[weight.numel() :]
            if ".lora_E." in name:
                pattern[name] = rest[: len(weight)].bool().tolist()
                rest = rest[len(weight) :]
        self._config.rank_pattern = pattern


def _gram(name: str, weight: Tensor) -> Tensor | None:
    """PᵀP or QQᵀ (r, r) of a low-rank matrix by its name."""
    if ".lora_A." in name:
        return weight @ weight.T
    return weight.T @ weight if ".lora_B." in name else None
