"""AdaLoRA's ranks over a run, and its penalty."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ml.models.adalora import AdaLoraTuner
from ml.models.classifier import NativeClassifier, load_native
from ml.models.tuning import tune
from ml.specs.tuning import AdaLoraTuning

MATRICES = 4  # queries and values of two layers


def tuned(base: Path, **fields: Any) -> NativeClassifier:
    targets = ["attention.self.query", "attention.self.value"]
    whole = {"rank": 2, "initial_rank": 5, "interval": 1, "initial": 0.2, "final": 0.3, "target_modules": targets}
    torch.manual_seed(1)
    network = load_native(base, width=3, labels=("a", "b", "c"), head="linear", scale=1.0, dropout=0.0)
    tune(network, AdaLoraTuning.model_validate({"type": "adalora", **whole, **fields}))
    return network


def ranks(network: NativeClassifier) -> list[int]:
    return [int(p.count_nonzero()) for name, p in network.named_parameters() if ".lora_E." in name]


def train(network: NativeClassifier, steps: int) -> list[int]:
    """Make so many steps, and return the sum of all ranks after each."""
    torch.manual_seed(2)
    ids, target = torch.randint(5, 50, (6, 8)), torch.tensor([0, 1, 2] * 2)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    seen = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        logits = network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.nn.functional.cross_entropy(logits, target).backward()
        optimizer.step()
        network.tuner.end_step(step, steps)
        seen.append(sum(ranks(network)))
    return seen


def test_ranks_stay_then_fall_then_stay_at_the_mean_that_was_asked_for(tiny_base: Path) -> None:
    network = tuned(tiny_base)
    sums = train(network, 20)
    assert sums[:4] == [5 * MATRICES] * 4  # 0.2 of 20
    assert sums == sorted(sums, reverse=True)
    assert len(set(sums)) > 4
    assert sums[13:] == [2 * MATRICES] * 7  # the last 0.3, and the step that settled them
    assert len(set(ranks(network))) > 1  # some matrices need more than others


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_of_hardly_any_steps_still_has_something_to_show(tiny_base: Path, steps: int) -> None:
    network = tuned(tiny_base, final=0.7)
    assert train(network, steps)[-1] >= 2 * MATRICES


def test_the_penalty_is_how_far_the_factors_are_from_orthogonal(tiny_base: Path) -> None:
    network = tuned(tiny_base, orthogonality=0.25)
    tuner = network.tuner
    assert isinstance(tuner, AdaLoraTuner)
    distances = []
    for name, weight in network.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            rows = (weight if ".lora_A." in name else weight.T).detach()  # (r, D)
            pairs = [float(rows[i] @ rows[j]) - (i == j) for i in range(5) for j in range(5)]
            distances.append(sum(pair**2 for pair in pairs) ** 0.5)
    assert len(distances) == 2 * MATRICES
    assert float(tuner.penalty().detach()) == pytest.approx(0.25 * sum(distances) / len(distances))


def test_the_penalty_is_part_of_what_is_minimised(tiny_base: Path) -> None:
    network = tuned(tiny_base)
    penalty: Any = network.tuner.penalty()
    penalty.backward()
    learned = {name: p.grad for name, p in network.named_parameters() if ".lora_" in name and p.requires_grad}
    assert all((grad is None) == (".lora_E." in name) for name, grad in learned.items())
