"""Losses of regression: a number a row. Targets are standardised by the training rows unless the task says otherwise,

so a width such as Huber's δ is in standard deviations of the target.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from ml.specs.losses.base import LossSpec, Reading, TaskType

_VALUE: dict[TaskType, Reading] = {"regression": "value", "ordinal": "rank"}


class MseSpec(LossSpec):
    """The squared error."""

    title: ClassVar[str] = "Mean squared error"
    formula: ClassVar[str] = "(z − y)²"
    paper: ClassVar[str] = "Bishop 2006, Pattern Recognition and Machine Learning, section 3.1.1"
    readings: ClassVar[dict[TaskType, Reading]] = _VALUE

    type: Literal["mse"]


class MaeSpec(LossSpec):
    """The absolute error: its minimum is the median, so outliers pull less."""

    title: ClassVar[str] = "Mean absolute error"
    formula: ClassVar[str] = "|z − y|"
    paper: ClassVar[str] = "Hastie, Tibshirani and Friedman 2009, The Elements of Statistical Learning, section 10.6"
    readings: ClassVar[dict[TaskType, Reading]] = _VALUE

    type: Literal["mae"]


class HuberSpec(LossSpec):
    """The squared error near the target, the absolute error away from it."""

    title: ClassVar[str] = "Huber loss"
    formula: ClassVar[str] = "½(z − y)² where |z − y| ≤ δ, else δ(|z − y| − δ/2)"
    paper: ClassVar[str] = "Huber 1964, Robust Estimation of a Location Parameter"
    readings: ClassVar[dict[TaskType, Reading]] = _VALUE

    type: Literal["huber"]
    delta: float = Field(1.0, gt=0, le=1000, description="δ: the error from which it grows linearly. Usual: 1 to 1.5.")


class SmoothL1Spec(LossSpec):
    """The absolute error, rounded off near the target: Huber's loss divided by its width."""

    title: ClassVar[str] = "Smooth L1 loss"
    formula: ClassVar[str] = "(z − y)²/(2β) where |z − y| < β, else |z − y| − β/2"
    paper: ClassVar[str] = "Girshick 2015, Fast R-CNN, arXiv:1504.08083"
    readings: ClassVar[dict[TaskType, Reading]] = _VALUE

    type: Literal["smooth_l1"]
    beta: float = Field(1.0, gt=0, le=1000, description="β: the error from which it grows linearly. Usual: 0.1 to 1.")


class PinballSpec(LossSpec):
    """An output for each quantile of the target: what lies below it is wrong by 1 − τ, what lies above by τ."""

    title: ClassVar[str] = "Pinball loss"
    formula: ClassVar[str] = "mean over τ of max(τ(y − z_τ), (τ − 1)(y − z_τ))"
    paper: ClassVar[str] = "Koenker and Bassett 1978, Regression Quantiles"
    readings: ClassVar[dict[TaskType, Reading]] = {"regression": "quantiles"}

    type: Literal["pinball"]
    quantiles: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.1, 0.5, 0.9],
        min_length=1,
        max_length=99,
        description="Each τ between 0 and 1, once, lowest first; the one nearest to 0.5 is the value.",
    )

    @field_validator("quantiles")
    @classmethod
    def _rises(cls, quantiles: list[float]) -> list[float]:
        if quantiles != sorted(set(quantiles)):
            raise ValueError(f"'quantiles' is {quantiles}, and must name each quantile once, lowest first.")
        return quantiles


class GaussianNllSpec(LossSpec):
    """A mean and a variance for each row: rows that the model holds for uncertain pull less."""

    title: ClassVar[str] = "Gaussian negative log-likelihood"
    formula: ClassVar[str] = "½(log σ² + (y − μ)²/σ²)"
    paper: ClassVar[str] = (
        "Nix and Weigend 1994, Estimating the Mean and Variance of the Target Probability Distribution"
    )
    readings: ClassVar[dict[TaskType, Reading]] = {"regression": "normal"}

    type: Literal["gaussian_nll"]


class PoissonNllSpec(LossSpec):
    """For counts: the output is the logarithm of how many are expected. Counts are at least 0 and not standardised."""

    title: ClassVar[str] = "Poisson negative log-likelihood"
    formula: ClassVar[str] = "e^z − y z"
    paper: ClassVar[str] = "McCullagh and Nelder 1989, Generalized Linear Models, chapter 6"
    readings: ClassVar[dict[TaskType, Reading]] = {"regression": "log_rate"}

    type: Literal["poisson_nll"]
