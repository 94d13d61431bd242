"""From a resolved spec, or from what an artifact says of itself, to the task."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ml.tasks.base import Calibration, Task
from ml.tasks.multi_label import MultiLabelTask
from ml.tasks.ordinal import OrdinalTask
from ml.tasks.readings import ValueReading, label_reading
from ml.tasks.regression import RegressionTask
from ml.tasks.text_classification import TextClassificationTask


class TaskState(BaseModel):
    """A task as JSON: all that is needed to read outputs again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text_classification", "multi_label", "regression", "ordinal"]
    reading: str
    labels: list[str] = []
    is_soft: bool = False
    temperature: float = Field(1.0, gt=0)
    platt: list[Annotated[list[float], Field(min_length=2, max_length=2)]] | None = None
    thresholds: list[float] | None = None
    shift: float = 0.0
    scale: float = Field(1.0, gt=0)
    quantiles: list[float] = []


def build_task(state: TaskState) -> Task:
    """The task that a state describes."""
    if state.type == "regression":
        return RegressionTask(ValueReading(state.reading, tuple(state.quantiles)), state.shift, state.scale)
    platt = None if state.platt is None else tuple((a, b) for a, b in state.platt)
    labels, calibration = tuple(state.labels), Calibration(state.temperature, platt)
    reading = label_reading(state.reading, labels)
    if state.type == "multi_label":
        thresholds = None if state.thresholds is None else tuple(state.thresholds)
        return MultiLabelTask(labels, reading, calibration, thresholds)
    kind = OrdinalTask if state.type == "ordinal" else TextClassificationTask
    return kind(labels, reading, state.is_soft, calibration)


def fitted_state(state: TaskState, task: Task) -> TaskState:
    """The state with what was fitted on the validation part."""
    fitted: dict[str, Any] = {}
    if isinstance(task, TextClassificationTask | MultiLabelTask):
        fitted["temperature"] = task.calibration.temperature
        fitted["platt"] = None if task.calibration.platt is None else [list(pair) for pair in task.calibration.platt]
    if isinstance(task, MultiLabelTask):
        fitted["thresholds"] = None if task.thresholds is None else list(task.thresholds)
    return state.model_copy(update=fitted)
