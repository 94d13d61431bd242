"""Optimizers by their spec, the groups of parameters they take, and the clipping of gradients."""

from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adafactor, Adam, Adamax, AdamW, Optimizer

from ml.models.layers import depths_below_head
from ml.specs import optimizers as specs
from ml.training.lamb import Lamb
from ml.training.lion import Lion


def build_optimizer(spec: specs.Optimizer, network: nn.Module, objective: nn.Module) -> Optimizer:
    """The optimizer over what trains: the network, and what the objective learns (a balance of its terms).

    Biases, norms (one-dimensional), factors of a tuning and the objective's own parameters are not decayed. Torch's
    kernels are fused where it has one: an unfused AdamW step took 13% of a MiniLM training step, fused 1.4%.
    """
    assert spec.learning_rate is not None, "a resolved spec has a learning rate"
    groups, rate = _groups(spec, network, objective), spec.learning_rate
    match spec:
        case specs.Sgd():
            return SGD(groups, lr=rate, momentum=spec.momentum, nesterov=spec.nesterov, fused=True)
        case specs.Adam():
            return Adam(groups, lr=rate, betas=(spec.beta1, spec.beta2), eps=spec.epsilon, fused=True)
        case specs.AdamW():
            return AdamW(groups, lr=rate, betas=(spec.beta1, spec.beta2), eps=spec.epsilon, fused=True)
        case specs.Adamax():
            return Adamax(groups, lr=rate, betas=(spec.beta1, spec.beta2), eps=spec.epsilon)
        case specs.Adafactor():
            eps, limit = (None, spec.epsilon), spec.clip_threshold
            return Adafactor(groups, lr=rate, beta2_decay=spec.beta2_decay, eps=eps, d=limit)
        case specs.Lamb():
            return Lamb(groups, lr=rate, betas=(spec.beta1, spec.beta2), eps=spec.epsilon)
        case specs.Lion():
            return Lion(groups, lr=rate, betas=(spec.beta1, spec.beta2))


def _groups(spec: specs.Optimizer, network: nn.Module, objective: nn.Module) -> list[dict[str, Any]]:
    """Parameters by their share of the learning rate and by their decay.

    Layer decay: ELECTRA (Clark et al. 2020), counted as BEiT does (Bao et al. 2022): the head has the full rate, the
    last layer `layer_decay` times that.
    """
    depths = depths_below_head(name for name, _ in network.named_parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            is_decayed = parameter.ndim > 1 and not getattr(parameter, "undecayed", False)
            kind = spec.layer_decay ** depths[name], spec.weight_decay if is_decayed else 0.0
            groups.setdefault(kind, []).append(parameter)
    groups.setdefault((1.0, 0.0), []).extend(objective.parameters())
    return [{"params": found, "rate_factor": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]


def only_scales_untouched(spec: specs.Optimizer) -> bool:
    """Whether weights that never have a gradient are multiplied by one number, which is the same for all of them.

    Adafactor and LAMB look at a matrix as a whole. Adam and Adamax divide a decay that is a gradient by its own size.
    """
    match spec:
        case specs.Adafactor() | specs.Lamb():
            return False
        case specs.Adam() | specs.Adamax():
            return spec.weight_decay == 0
        case _:
            return True


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every parameter group its share of this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


def clip_gradients(network: nn.Module, max_norm: float | None) -> torch.Tensor:
    """Scale the gradients down to `max_norm` and return their norm before that."""
    parameters = [p for p in network.parameters() if p.grad is not None]
    return nn.utils.clip_grad_norm_(parameters, max_norm if max_norm is not None else float("inf"))
