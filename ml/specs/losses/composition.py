"""Several losses at once: weighted terms, weights that change over training, and ways to balance them."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ml.specs.base import OfType, Spec
from ml.specs.losses.auxiliary import KdSpec
from ml.specs.losses.table import AnyLoss


class WeightSchedule(Spec):
    """A weight that changes over training: `from` until `start`, `to` after `end`, in shares of all steps."""

    schedule: Literal["linear", "cosine", "step", "warmup"] = Field(
        description="linear and cosine go from one to the other; step jumps at `end`; warmup rises along a parabola."
    )
    from_: float = Field(alias="from", ge=0, le=1e6, description="The weight at first.")
    to: float = Field(ge=0, le=1e6, description="The weight at last.")
    start: float = Field(0.0, ge=0, le=1, description="Share of all steps after which it begins to change.")
    end: float = Field(1.0, ge=0, le=1, description="Share of all steps after which it is `to`.")

    @model_validator(mode="after")
    def _ends_after_it_starts(self) -> "WeightSchedule":
        if self.end <= self.start:
            raise ValueError(f"'end' is {self.end}, and must be greater than 'start', {self.start}.")
        return self


def _kind_of_weight(value: Any) -> str:
    return "<schedule>" if isinstance(value, dict | WeightSchedule) else "<number>"


Weight = Annotated[
    Annotated[float, Field(ge=0, le=1e6), Tag("<number>")] | Annotated[WeightSchedule, Tag("<schedule>")],
    Discriminator(_kind_of_weight),
]


OneLoss = Annotated[AnyLoss, OfType()]


class Term(Spec):
    """One term of a composition."""

    id: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Names its metric series; default: the loss's type."
    )
    loss: OneLoss = Field(description="An object or its type, as `loss` of a job is; no composition.")
    weight: Weight = Field(1.0, description="A number, or a schedule.")


class Combine(Spec):
    """How terms become one number to minimise."""

    type: str


class FixedCombine(Combine):
    """Σ w_k L_k. Kurin et al. 2022 find that it matches specialised methods."""

    type: Literal["fixed"]


class NormalizedCombine(Combine):
    """Σ w_k L_k / EMA(L_k): for losses of different scale."""

    type: Literal["normalized"]
    decay: float = Field(0.99, ge=0, lt=1, description="Of the moving average.")


class UncertaintyCombine(Combine):
    """Σ w_k (c e^{−s_k} L_k + s_k / 2), s_k learned; c is ½ for regression losses, 1 else (Kendall et al. 2018)."""

    type: Literal["uncertainty"]


class DwaCombine(Combine):
    """Weights by how slowly each loss fell over the last two epochs (Liu et al. 2019)."""

    type: Literal["dwa"]
    temperature: float = Field(2.0, gt=0, le=100, description="Higher: more alike.")


class GradNormCombine(Combine):
    """Learns weights that bring gradient norms together (Chen et al. 2018). One backward pass a term."""

    type: Literal["gradnorm"]
    alpha: float = Field(1.5, ge=0, le=10, description="How much faster a slower term may learn.")
    learning_rate: float = Field(0.025, gt=0, le=1, description="Of the weights.")


class PcGradCombine(Combine):
    """Takes out of each gradient what conflicts with another (Yu et al. 2020). One backward pass a term."""

    type: Literal["pcgrad"]


class RlwCombine(Combine):
    """Random weights, softmax of a normal, drawn each step (Lin et al. 2022): a control."""

    type: Literal["rlw"]


AnyCombine = Annotated[
    FixedCombine | NormalizedCombine | UncertaintyCombine | DwaCombine | GradNormCombine | PcGradCombine | RlwCombine,
    Field(discriminator="type"),
    OfType(),
]


class Composition(Spec):
    """Several terms."""

    terms: list[Term] = Field(
        min_length=1, max_length=8, description="At least one is a task's loss; auxiliary ones stand beside it."
    )
    combine: AnyCombine = Field(
        FixedCombine(type="fixed"), description="How terms become one number: an object or its type."
    )

    @model_validator(mode="after")
    def _names_each_term_once(self) -> "Composition":
        names = [term_id(term) for term in self.terms]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two terms are called {', '.join(repeated)}: give each an 'id' of its own.")
        if self.combine.type not in ("fixed", "normalized") and len(self.terms) < 2:
            raise ValueError(f"'{self.combine.type}' balances terms and needs two or more; there is {len(self.terms)}.")
        return self


def _kind_of_loss(value: Any) -> str:
    is_composition = isinstance(value, Composition) or (isinstance(value, dict) and "terms" in value)
    return "<composition>" if is_composition else "<loss>"


# Of a field that holds a Loss, and shown where it is typed.
GRAMMAR = """What training minimises. Null: `cross_entropy`, `bce` or `mse`, by the task.

- **One loss**, by its type: `"focal"`, or with its fields: `{"type": "focal", "gamma": 2}`.
  `GET /v1/losses` lists them, with formulas.
- **Several**, as `terms`, each with a `weight`:
  `{"terms": [{"loss": "cross_entropy"}, {"loss": "r_drop", "weight": 0.5}]}`. Auxiliary losses (`r_drop`,
  `supcon`, `fgm`, `entropy_min`, `kd`) stand beside a task's loss in this way.
- **A weight that changes** over training, from `start` to `end` in shares of all steps:
  `{"loss": "supcon", "weight": {"schedule": "cosine", "from": 1, "to": 0, "start": 0.2}}`. Schedules: `linear`,
  `cosine`, `step`, `warmup`.
- **How terms combine**: `"combine": "fixed"` adds them by weight; `normalized` divides each by its running mean;
  `uncertainty`, `dwa` and `gradnorm` learn or adapt the weights; `pcgrad` takes conflicts out of the gradients; `rlw`
  draws weights, as a control. With fields: `{"type": "gradnorm", "alpha": 1.5}`.
- **Weights of labels** are a field of a loss, as `class_weights` of `cross_entropy`: `"balanced"`,
  `{"scheme": "effective_number", "beta": 0.999}`, or a number for each label by its name, `{"refund": 2, "other": 1}`.
"""

Loss = Annotated[
    Annotated[OneLoss, Tag("<loss>")] | Annotated[Composition, Tag("<composition>")],
    Discriminator(_kind_of_loss),
]


def terms_of(loss: "AnyLoss | Composition") -> list[Term]:
    """The terms of a loss; a single loss is one term of weight 1."""
    return loss.terms if isinstance(loss, Composition) else [Term(loss=loss)]


def teachers_of(loss: "AnyLoss | Composition") -> dict[str, str]:
    """The models that a loss learns from: their ids by the JSON pointer, within the loss, that names them."""
    return {
        f"/terms/{place}/loss/teacher": term.loss.teacher
        for place, term in enumerate(terms_of(loss))
        if isinstance(term.loss, KdSpec)
    }


def term_id(term: Term) -> str:
    """What a term is called."""
    return term.id or term.loss.type
