"""Loss values and gradients by other people's code, on fixed inputs: writes values.json, which test_oracles.py reads.

It runs in an environment of its own, never in the project's:
    python3 -m venv /tmp/oracles
    /tmp/oracles/bin/pip install torch==2.13.0        # first, so that the CPU build is taken where it is offered
    /tmp/oracles/bin/pip install --no-deps torchvision==0.28.0 timm==1.0.31 monai==1.6.1 \\
        pytorch-metric-learning==2.9.0 coral-pytorch==1.4.0
    /tmp/oracles/bin/pip install scikit-learn==1.9.1 numpy==2.4.6 tqdm
    /tmp/oracles/bin/python tests/oracles/generate.py
It imports nothing of this project: what a loss means stands here a second time, in the other libraries' words.

A torchvision wheel that was built for CUDA cannot load its C extension beside a CPU build of torch; then the file of
the one function is loaded by itself, and of timm, which imports torchvision, the file of the one class.
"""

import importlib.metadata
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ROWS, CLASSES, DIMENSIONS = 6, 4, 5
LABELS = "abcd"
PACKAGES = ["torch", "torchvision", "timm", "monai", "pytorch-metric-learning", "coral-pytorch", "scikit-learn"]

torch.set_default_dtype(torch.float64)
torch.manual_seed(2024)
LOGITS = 2 * torch.randn(ROWS, CLASSES)
TEACHER = 2 * torch.randn(ROWS, CLASSES)
EMBEDDINGS = torch.randn(ROWS, DIMENSIONS)
VECTORS = torch.randn(CLASSES, DIMENSIONS)
NUMBERS = 2 * torch.randn(ROWS)
HARD = torch.tensor([0, 1, 2, 3, 1, 0])
IGNORING = torch.tensor([0, 1, -100, 3, 1, 0])
SOFT = torch.randn(ROWS, CLASSES).softmax(-1)
HOT = (torch.rand(ROWS, CLASSES) > 0.6).double()
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0])
BY_LABEL = dict(zip(LABELS, WEIGHTS.tolist(), strict=True))
# The fourth row lies almost opposite to its label's vector, where arcface's margin goes another way.
EMBEDDINGS[3] = -VECTORS[3] + 0.05 * torch.randn(DIMENSIONS)


def main() -> None:
    """Compute every case, note what could not be had, and write both."""
    cases, missing = [], {}
    for make in (
        torch_cases,
        torchvision_cases,
        monai_cases,
        metric_learning_cases,
        coral_cases,
        timm_cases,
        sklearn_cases,
    ):
        try:
            cases += make()
        except ImportError as error:
            missing[make.__name__.removesuffix("_cases")] = str(error)
    versions = {name: version for name in PACKAGES if (version := _version(name))}
    head = json.dumps({"versions": versions, "missing": missing}, indent=1).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(case) for case in cases)
    (Path(__file__).parent / "values.json").write_text(f'{head},\n "cases": [\n  {lines}\n ]\n}}\n')
    print(f"{len(cases)} cases; missing: {missing or 'nothing'}")  # noqa: T201


def case(
    oracle: str,
    loss: str,
    parameters: dict[str, Any],
    labels: Tensor,
    compute: Callable[[Tensor], Tensor],
    at: Tensor = LOGITS,
    **further: Any,
) -> dict[str, Any]:
    """One value, or one a row, and the gradient of its mean with respect to `at`."""
    point = at.clone().requires_grad_()
    value = compute(point)
    if value.requires_grad:
        value.mean().backward()
    gradient = None if point.grad is None else point.grad.tolist()
    place = "embeddings" if at is EMBEDDINGS else "logits"
    tensors = {name: value.tolist() for name, value in further.items() if isinstance(value, Tensor)}
    return {
        "loss": loss,
        "oracle": oracle,
        "parameters": parameters,
        place: at.tolist(),
        "labels": labels.tolist(),
        "value": value.detach().tolist(),
        "gradient": gradient,
        **further,
        **tensors,
    }


def torch_cases() -> list[dict[str, Any]]:
    """torch itself."""
    two = LOGITS[:, :2]
    one = LOGITS[:, :1]
    counts = NUMBERS.abs().round()
    found = [
        case("F.cross_entropy", "cross_entropy", {}, HARD, lambda z: functional.cross_entropy(z, HARD)),
        case(
            "F.nll_loss after log_softmax",
            "cross_entropy",
            {},
            IGNORING,
            lambda z: functional.nll_loss(functional.log_softmax(z, -1), IGNORING),
        ),
        case(
            "F.cross_entropy, weighted and smoothed",
            "cross_entropy",
            {"class_weights": BY_LABEL, "label_smoothing": 0.1},
            IGNORING,
            lambda z: functional.cross_entropy(z, IGNORING, WEIGHTS, label_smoothing=0.1),
        ),
        case(
            "F.cross_entropy of probabilities",
            "soft_cross_entropy",
            {"temperature": 2.0},
            SOFT,
            lambda z: functional.cross_entropy(z / 2, SOFT, reduction="none"),
        ),
        case(
            "F.kl_div",
            "kl",
            {"temperature": 2.0},
            SOFT,
            lambda z: functional.kl_div(functional.log_softmax(z / 2, -1), SOFT, reduction="batchmean"),
        ),
        case(
            "F.kl_div times T²",
            "kd",
            {"teacher": "mdl_x", "temperature": 3.0},
            HARD,
            lambda z: (
                9
                * functional.kl_div(
                    functional.log_softmax(z / 3, -1), functional.softmax(TEACHER / 3, -1), reduction="batchmean"
                )
            ),
            teacher=TEACHER,
        ),
        case(
            "F.binary_cross_entropy_with_logits",
            "bce",
            {"pos_weight": BY_LABEL},
            HOT,
            lambda z: functional.binary_cross_entropy_with_logits(z, HOT, pos_weight=WEIGHTS),
        ),
        case(
            "nn.MultiLabelSoftMarginLoss",
            "soft_margin",
            {},
            HOT,
            lambda z: nn.MultiLabelSoftMarginLoss(reduction="none")(z, HOT),
        ),
        case(
            "F.gaussian_nll_loss",
            "gaussian_nll",
            {},
            NUMBERS,
            lambda z: functional.gaussian_nll_loss(z[:, 0], NUMBERS, z[:, 1].exp(), reduction="none"),
            at=two,
        ),
        case(
            "F.poisson_nll_loss",
            "poisson_nll",
            {},
            counts,
            lambda z: functional.poisson_nll_loss(z[:, 0], counts, log_input=True, reduction="none"),
            at=one,
        ),
    ]
    for power in (1, 2):
        hinge = nn.MultiMarginLoss(p=power, margin=1.5, reduction="none")
        found.append(
            case(
                "nn.MultiMarginLoss",
                "hinge",
                {"margin": 1.5, "power": power},
                HARD,
                lambda z, hinge=hinge: hinge(z, HARD),
            )
        )
    errors: list[tuple[str, str, dict[str, float], Callable[[Tensor, Tensor], Tensor]]] = [
        ("F.mse_loss", "mse", {}, functional.mse_loss),
        ("F.l1_loss", "mae", {}, functional.l1_loss),
        ("F.huber_loss", "huber", {"delta": 0.7}, lambda z, y: functional.huber_loss(z, y, delta=0.7)),
        ("F.smooth_l1_loss", "smooth_l1", {"beta": 0.3}, lambda z, y: functional.smooth_l1_loss(z, y, beta=0.3)),
    ]
    for oracle, loss, parameters, compute in errors:
        found.append(
            case(oracle, loss, parameters, NUMBERS, lambda z, compute=compute: compute(z[:, 0], NUMBERS), at=one)
        )
    return found


def torchvision_cases() -> list[dict[str, Any]]:
    """torchvision.ops.sigmoid_focal_loss. Its α = −1 is none."""
    sigmoid_focal_loss = _from_torchvision()
    return [
        case(
            "torchvision.ops.sigmoid_focal_loss",
            "sigmoid_focal",
            {"gamma": gamma, "alpha": alpha},
            HOT,
            lambda z, gamma=gamma, alpha=alpha: sigmoid_focal_loss(z, HOT, -1 if alpha is None else alpha, gamma).mean(
                -1
            ),
        )
        for gamma, alpha in ((2.0, 0.25), (0.0, 0.5), (3.0, None))
    ]


def monai_cases() -> list[dict[str, Any]]:
    """monai's FocalLoss over a softmax. It computes in float32, and averages over the classes, of which one counts."""
    from monai.losses import FocalLoss

    focal = FocalLoss(use_softmax=True, to_onehot_y=True, gamma=1.5, reduction="none")
    return [
        case(
            "monai FocalLoss(use_softmax)",
            "focal",
            {"gamma": 1.5},
            HARD,
            lambda z: focal(z, HARD[:, None]).sum(-1),
        )
    ]


def metric_learning_cases() -> list[dict[str, Any]]:
    """pytorch-metric-learning. Its margin losses hold the labels' vectors themselves."""
    from pytorch_metric_learning import losses

    found = [
        case(
            "pytorch_metric_learning SupConLoss",
            "supcon",
            {"temperature": 0.2},
            labels,
            lambda v, labels=labels: losses.SupConLoss(temperature=0.2)(v, labels),
            at=EMBEDDINGS,
        )
        for labels in (HARD, torch.tensor([0, 1, 0, 1, 1, 0]))
    ]
    margins: list[tuple[Any, str, dict[str, float]]] = [
        (losses.ArcFaceLoss(CLASSES, DIMENSIONS, margin=28.6, scale=16), "arcface", {"margin_degrees": 28.6}),
        (losses.CosFaceLoss(CLASSES, DIMENSIONS, margin=0.35, scale=16), "cosface", {"margin": 0.35}),
    ]
    for margin_loss, loss, parameters in margins:
        with torch.no_grad():
            margin_loss.W.copy_(VECTORS.T)
        found.append(
            case(
                f"pytorch_metric_learning {type(margin_loss).__name__}",
                loss,
                {**parameters, "scale": 16.0},
                HARD,
                lambda v, margin_loss=margin_loss: margin_loss(v, HARD),
                at=EMBEDDINGS,
                vectors=VECTORS,
            )
        )
    return found


def coral_cases() -> list[dict[str, Any]]:
    """coral_pytorch, by the authors of CORAL and CORN."""
    from coral_pytorch.losses import coral_loss, corn_loss

    thresholds = LOGITS[:, : CLASSES - 1]
    levels = (HARD[:, None] > torch.arange(CLASSES - 1)).double()
    return [
        case("coral_pytorch coral_loss", "coral", {}, HARD, lambda z: coral_loss(z, levels), at=thresholds),
        case("coral_pytorch corn_loss", "corn", {}, HARD, lambda z: corn_loss(z, HARD, CLASSES), at=thresholds),
    ]


def timm_cases() -> list[dict[str, Any]]:
    """timm's AsymmetricLossMultiLabel, which computes in float32; averaged over the labels, as ours is."""
    asymmetric = _from_timm()
    return [
        case(
            "timm AsymmetricLossMultiLabel",
            "asl",
            {"gamma_pos": positive, "gamma_neg": 4.0, "clip": clip},
            HOT,
            lambda z, positive=positive, clip=clip: asymmetric(
                gamma_neg=4, gamma_pos=positive, clip=clip, reduction="none"
            )(z, HOT).mean(-1),
        )
        for positive, clip in ((0.0, 0.05), (1.0, 0.2))
    ]


def sklearn_cases() -> list[dict[str, Any]]:
    """scikit-learn's mean_pinball_loss, averaged over the quantiles. It has no gradient."""
    from sklearn.metrics import mean_pinball_loss

    quantiles = [0.1, 0.5, 0.9]
    outputs = LOGITS[:, : len(quantiles)]

    def compute(z: Tensor) -> Tensor:
        columns = z.detach().numpy().T
        parts = [mean_pinball_loss(NUMBERS.numpy(), z, alpha=tau) for tau, z in zip(quantiles, columns, strict=True)]
        return torch.tensor(sum(parts) / len(parts))

    return [case("sklearn mean_pinball_loss", "pinball", {"quantiles": quantiles}, NUMBERS, compute, at=outputs)]


def _from_torchvision() -> Any:
    try:
        from torchvision.ops import sigmoid_focal_loss
    except RuntimeError:  # the C extension is of another build
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        for name in ("torchvision", "torchvision.ops", "torchvision.utils"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision.utils"]._log_api_usage_once = lambda *_: None  # type: ignore[attr-defined]
        return _load("torchvision", "ops/focal_loss.py").sigmoid_focal_loss
    return sigmoid_focal_loss


def _from_timm() -> Any:
    try:
        from timm.loss import AsymmetricLossMultiLabel
    except (RuntimeError, ImportError):  # it imports torchvision
        return _load("timm", "loss/asymmetric_loss.py").AsymmetricLossMultiLabel
    return AsymmetricLossMultiLabel


def _load(package: str, file: str) -> Any:
    """One file of an installed package, without the package around it."""
    places = [Path(folder) / package / file for folder in sys.path]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ImportError(f"{package} is not installed")
    spec = importlib.util.spec_from_file_location(f"{package}.{file[:-3].replace('/', '.')}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
