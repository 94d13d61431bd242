"""The table of losses, and how a spec becomes one."""

import torch

from ml.losses.arcface import ArcFaceLoss
from ml.losses.asl import AslLoss
from ml.losses.base import Loss, LossContext
from ml.losses.bce import BceLoss
from ml.losses.binary_hinge import BinaryHingeLoss
from ml.losses.bootstrap import BootstrapLoss
from ml.losses.coral import CoralLoss
from ml.losses.corn import CornLoss
from ml.losses.cosface import CosFaceLoss
from ml.losses.cross_entropy import CrossEntropyLoss
from ml.losses.cumulative_link import CumulativeLinkLoss
from ml.losses.db_loss import DbLoss
from ml.losses.dice import DiceLoss
from ml.losses.emd2 import Emd2Loss
from ml.losses.entropy_min import EntropyMinLoss
from ml.losses.fgm import FgmLoss
from ml.losses.focal import FocalLoss
from ml.losses.gaussian_nll import GaussianNllLoss
from ml.losses.gce import GceLoss
from ml.losses.group_dro import GroupDroLoss
from ml.losses.hinge import HingeLoss
from ml.losses.huber import HuberLoss
from ml.losses.kd import KdLoss
from ml.losses.kl import KlLoss
from ml.losses.ldam import LdamLoss
from ml.losses.logit_adjusted import LogitAdjustedLoss
from ml.losses.mae import MaeLoss
from ml.losses.mse import MseLoss
from ml.losses.pinball import PinballLoss
from ml.losses.poisson_nll import PoissonNllLoss
from ml.losses.poly1 import Poly1Loss
from ml.losses.r_drop import RDropLoss
from ml.losses.sce import SceLoss
from ml.losses.sigmoid_focal import SigmoidFocalLoss
from ml.losses.smooth_l1 import SmoothL1Loss
from ml.losses.soft_cross_entropy import SoftCrossEntropyLoss
from ml.losses.soft_margin import SoftMarginLoss
from ml.losses.sord import SordLoss
from ml.losses.supcon import SupConLoss
from ml.losses.v_rex import VRexLoss
from ml.losses.zlpr import ZlprLoss
from ml.specs.losses.base import LossSpec
from ml.tasks.class_weights import weigh_labels

LOSSES: dict[str, type[Loss]] = {
    "cross_entropy": CrossEntropyLoss,
    "focal": FocalLoss,
    "hinge": HingeLoss,
    "binary_hinge": BinaryHingeLoss,
    "soft_cross_entropy": SoftCrossEntropyLoss,
    "kl": KlLoss,
    "logit_adjusted": LogitAdjustedLoss,
    "ldam": LdamLoss,
    "poly1": Poly1Loss,
    "gce": GceLoss,
    "sce": SceLoss,
    "bootstrap": BootstrapLoss,
    "dice": DiceLoss,
    "arcface": ArcFaceLoss,
    "cosface": CosFaceLoss,
    "group_dro": GroupDroLoss,
    "v_rex": VRexLoss,
    "bce": BceLoss,
    "sigmoid_focal": SigmoidFocalLoss,
    "mse": MseLoss,
    "mae": MaeLoss,
    "r_drop": RDropLoss,
    "supcon": SupConLoss,
    "fgm": FgmLoss,
    "entropy_min": EntropyMinLoss,
    "kd": KdLoss,
    "asl": AslLoss,
    "zlpr": ZlprLoss,
    "db_loss": DbLoss,
    "soft_margin": SoftMarginLoss,
    "huber": HuberLoss,
    "smooth_l1": SmoothL1Loss,
    "pinball": PinballLoss,
    "gaussian_nll": GaussianNllLoss,
    "poisson_nll": PoissonNllLoss,
    "coral": CoralLoss,
    "corn": CornLoss,
    "cumulative_link": CumulativeLinkLoss,
    "sord": SordLoss,
    "emd2": Emd2Loss,
}

# Fields that a user keys by label name, and a loss wants as a (C,) tensor in the order of the labels.
PER_LABEL_FIELDS = frozenset({"class_weights", "pos_weight"})


def build_loss(spec: LossSpec, context: LossContext) -> Loss:
    """The loss a spec asks for."""
    loss = LOSSES[spec.type]
    arguments = {name: getattr(spec, name) for name in type(spec).model_fields if name != "type"}
    for name, value in arguments.items():
        if name in PER_LABEL_FIELDS or isinstance(value, dict):
            weights = weigh_labels(value, context.labels, context.train_counts)
            arguments[name] = None if weights is None else torch.from_numpy(weights)
    for name in loss.wants:
        arguments[name] = getattr(context, name)
    return loss(**arguments)
