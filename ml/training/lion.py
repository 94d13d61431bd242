"""Lion, as its paper has it: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, algorithm 2."""

from typing import Any

import torch
from torch.optim import Optimizer


class Lion(Optimizer):
    """Steps of one size along the sign of a momentum: half of Adam's state.

        x ← x − η (sign(β₁ m + (1 − β₁) g) + λx)    then m ← β₂ m + (1 − β₂) g

    g: gradient; m: momentum; λ: weight decay; η: learning rate.
    """

    def __init__(self, groups: Any, *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            (beta1, beta2), rate = group["betas"], group["lr"]
            for x in group["params"]:
                if x.grad is None:
                    continue
                state = self.state[x]
                if not state:
                    state["exp_avg"] = torch.zeros_like(x)
                m = state["exp_avg"]
                direction = m.lerp(x.grad, 1 - beta1).sign_()
                x.mul_(1 - rate * group["weight_decay"]).sub_(direction, alpha=rate)
                m.lerp_(x.grad, 1 - beta2)
