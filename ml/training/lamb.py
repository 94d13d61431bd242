"""LAMB, as its paper has it: You et al. 2020, Large Batch Optimization for Deep Learning, algorithm 2."""

from typing import Any

import torch
from torch.optim import Optimizer


class Lamb(Optimizer):
    """Adam whose step for a matrix is as long as a share of that matrix's own norm.

        x ← x − η ‖x‖ / ‖r + λx‖ (r + λx)    r = m̂ / (√v̂ + ε)

    x: a matrix; m̂, v̂: Adam's means, bias-corrected; λ: weight decay; η: learning rate. A norm of 0 counts as no ratio.
    Biases and norms take Adam's step, as in the authors' code: in proportion to a bias of 0 nothing would move.
    """

    def __init__(self, groups: Any, *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            (beta1, beta2), decay = group["betas"], group["weight_decay"]
            for x in group["params"]:
                if x.grad is None:
                    continue
                state = self.state[x]
                if not state:
                    state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(x), exp_avg_sq=torch.zeros_like(x))
                state["step"] += 1
                steps = int(state["step"])
                m = state["exp_avg"].lerp_(x.grad, 1 - beta1)
                v = state["exp_avg_sq"].mul_(beta2).addcmul_(x.grad, x.grad, value=1 - beta2)
                update = (m / (1 - beta1**steps)).div_((v / (1 - beta2**steps)).sqrt_().add_(group["eps"]))
                if x.ndim > 1:
                    update.add_(x, alpha=decay)
                    size, length = x.norm(), update.norm()
                    update.mul_(torch.where((size > 0) & (length > 0), size / length, 1.0))
                x.sub_(update, alpha=group["lr"])
