"""The training loop, top to bottom. It knows a prepared run and a machine; it reads no file and draws no network.

What it tells (events, metrics, checkpoints) goes through the run directory; what stops it comes as a flag.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml.artifact.manifest import DiskFullError, newest_verified
from ml.bases import small_files
from ml.data.batches import Rows, steps_per_epoch
from ml.data.splits import Part
from ml.models.classifier import NativeClassifier
from ml.specs.errors import refuse
from ml.tasks.base import Task
from ml.tasks.build import TaskState, fitted_state
from ml.training.checkpoint import Position, differences, load_checkpoint, save_checkpoint, trainable_state
from ml.training.compiled import LENGTHS, CompiledNetwork
from ml.training.ema import AveragedWeights
from ml.training.errors import NonFiniteLossError, StoppedError
from ml.training.machine import Machine
from ml.training.optimizers import build_optimizer, clip_gradients, set_learning_rate
from ml.training.prepare import Prepared, logits_of
from ml.training.run import RunDirectory
from ml.training.schedules import learning_rate_factor
from ml.training.step import Examples, StepReport, backward_step

# A series holds about this many points, the first and the last step among them.
POINTS_PER_SERIES = 200
PROGRESS_EVERY_SECONDS = 0.5


@dataclass
class Fitted:
    """What training came to."""

    metrics: dict[str, dict[str, float]]  # of each part that has rows
    report: dict[str, Any]  # of the test part, else of the validation part
    steps: int
    state: TaskState  # with what was fitted
    task: Task  # the same
    # Outputs (N, H) and targets of the reported part; of no rows where there is none.
    answers: tuple[NDArray[np.float32], NDArray[Any]] = field(repr=False, compare=False)


def fit(
    run: RunDirectory, prepared: Prepared, machine: Machine, fingerprint: dict[str, Any], stop: Callable[[], bool]
) -> Fitted:
    """Train to the end, from the newest checkpoint that verifies if there is one.

    Raises StoppedError once `stop()` is true and a checkpoint is written, NonFiniteLossError with the step.
    """
    loop = _Loop(run, prepared, machine, fingerprint, stop)
    loop.resume()
    while not loop.is_done:
        loop.train_epoch()
        loop.validate()
        loop.save_if_due()
    return loop.end()


def publish(
    run: RunDirectory, prepared: Prepared, machine: Machine, fingerprint: dict[str, Any], stop: Callable[[], bool]
) -> Fitted:
    """What `fit` would come to if it ended at the checkpoint that is there. Raises SpecError where none verifies."""
    loop = _Loop(run, prepared, machine, fingerprint, stop)
    if not loop.resume():
        raise refuse("", "the checkpoint is damaged: publish another one.", "checkpoint_damaged")
    if not loop.is_measured:
        loop.validate()
    return loop.end()


class _Loop:
    """The state that the loop's parts share."""

    def __init__(
        self,
        run: RunDirectory,
        prepared: Prepared,
        machine: Machine,
        fingerprint: dict[str, Any],
        stop: Callable[[], bool],
    ) -> None:
        self.run, self.prepared, self.machine, self.stop = run, prepared, machine, stop
        self.fingerprint = fingerprint
        self.training = prepared.spec.training
        self.network = prepared.network.to(machine.device).train()
        self.objective = prepared.objective.on(machine.device)
        self.optimizer = build_optimizer(self.training.optimizer, self.network, self.objective)
        self.scaler = machine.grad_scaler()
        decay = self.training.ema_decay
        self.average = None if decay is None else AveragedWeights(self.network, decay)
        self.task = prepared.task
        self.forward = None
        if self.training.compile:
            assert isinstance(self.network, NativeClassifier), "a spec that compiles a frozen run is refused"
            self.forward = CompiledNetwork(self.network)
        self.train_rows = prepared.rows_of(Part.TRAIN)
        self.validation_rows = prepared.rows_of(Part.VALIDATION)
        self.steps_per_epoch = steps_per_epoch(len(self.train_rows), self.training.batch_size)
        whole = self.steps_per_epoch * self.training.epochs
        self.steps = min(whole, self.training.max_steps or whole)
        self.examples = self._examples()
        self.position = Position()
        self.unread: list[tuple[int, StepReport, Tensor]] = []  # steps, with their gradients' norms
        self.best: dict[str, Tensor] | None = None
        self.saved_at = self.told_at = self.begun_at = time.monotonic()
        self.begun_step = self.told_step = 0
        self.speed = _Speed()

    def _examples(self) -> Examples:
        if self.prepared.features is not None:
            return self.prepared.features

        def told(done: int, rows: int) -> None:
            if self.stop():
                raise StoppedError("stopped while encoding the texts")
            self.run.tell("progress", "encoding", {"step": 0, "encoded": done, "rows": rows})

        corpus, encoder, frozen = self.prepared.corpus, self.prepared.encoder, self.prepared.frozen_layers
        if encoder is not None:
            return corpus.features(lambda: encoder, self.machine, told)
        if frozen is not None and self.steps >= self.steps_per_epoch:  # a shorter run does not read every row
            hidden = corpus.hidden(frozen, self.machine, told)
            if hidden is not None:
                return hidden
        return self.prepared.tokens.in_buckets(LENGTHS) if self.training.compile else self.prepared.tokens

    @property
    def is_done(self) -> bool:
        """Whether no step is left to make, and the last one is measured."""
        at = self.position
        return at.is_finished or (at.step >= self.steps and self.is_measured)

    @property
    def is_measured(self) -> bool:
        """Whether validation was measured after the last step."""
        return self.position.measured_step == self.position.step

    def resume(self) -> bool:
        """Go on from the newest good checkpoint, and say which; False where there is none."""
        folder = newest_verified(
            self.run.checkpoints, lambda why: self.run.tell("message", f"checkpoint refused: {why}", level="warning")
        )
        if folder is None:
            return False
        self.position, self.best = load_checkpoint(
            folder, self.network, self.objective, self.optimizer, self.scaler, self.average, self.fingerprint
        )
        self.begun_step = self.told_step = self.position.step
        if changed := differences(folder, self.fingerprint):
            self.run.tell(
                "message",
                f"another {' and '.join(changed)} than before: the result will not be the same to the bit",
                level="warning",
            )
        self.run.tell(
            "status",
            f"resumed from step {self.position.step}",
            {"reason": "resumed", "checkpoint": folder.name, "step": self.position.step},
        )
        return True

    def train_epoch(self) -> None:
        """Make the rest of the present epoch's steps."""
        plan = self.prepared.steps_of(self.position.epoch, self.examples.lengths)
        self.objective.begin_epoch(self.position.epoch)
        for rows in plan[self.position.step_in_epoch :]:
            if self.stop():
                self.save()
                raise StoppedError(f"stopped at step {self.position.step}")
            if self.position.step >= self.steps:
                return
            self.make_step(rows)
            if self.position.step_in_epoch < len(plan):  # after the last step, validation comes first
                self.save_if_due()
        self.objective.rule.end_epoch()
        self.position.epoch += 1
        self.position.step_in_epoch = 0

    def make_step(self, rows: Rows) -> None:
        """One optimizer step over these rows."""
        assert self.training.optimizer.learning_rate is not None, "a resolved spec has a learning rate"
        rate = self.training.optimizer.learning_rate * learning_rate_factor(
            self.training.schedule, self.position.step, self.steps
        )
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        report = backward_step(
            self.network,
            self.objective,
            self.prepared.batch_of(rows, self.position.step, self.examples),
            self.machine,
            self.training.micro_batch_rows,
            self.position.step / self.steps,
            self.scaler,
            self.forward,
        )
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.network, self.training.max_grad_norm)
        self.unread.append((self.position.step + 1, report, norm))
        if not self.machine.is_asynchronous:
            self.read()
        self.scaler.step(self.optimizer)  # skipped where a gradient overflowed float16
        self.scaler.update()
        self.position.step += 1
        self.position.step_in_epoch += 1
        if isinstance(self.network, NativeClassifier):
            self.network.tuner.end_step(self.position.step, self.steps)
        if self.average is not None:
            self.average.update(self.position.step)
        self.speed.add(report)
        self.tell_step(report, norm, rate)

    def read(self) -> None:
        """Look at the steps made since the last reading; raise NonFiniteLossError for the first that went wrong.

        On an asynchronous device that is done where steps are told, and before anything is kept of them.
        """
        for step, report, norm in self.unread:
            loss, length = report.loss, float(norm)
            if not math.isfinite(loss) or not (math.isfinite(length) or self._may_skip):
                bad = [name for name, value in report.terms.items() if not math.isfinite(value)] or report.names
                raise NonFiniteLossError(
                    f"the loss became {loss} (gradient norm {length}) at step {step}, in {', '.join(bad)}. "
                    "Lower training.optimizer.learning_rate, or keep max_grad_norm at 1."
                )
        self.unread.clear()

    @property
    def _may_skip(self) -> bool:
        """Whether gradients that are not finite are only scaled too high."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1

    def tell_step(self, report: StepReport, norm: Tensor, rate: float) -> None:
        """Report progress twice a second, and metrics at the first, the last and every N-th step."""
        step, now = self.position.step, time.monotonic()
        is_end = step in {1, self.steps}
        has_metrics = is_end or step % max(1, self.steps // POINTS_PER_SERIES) == 0
        has_progress = is_end or now - self.told_at >= PROGRESS_EVERY_SECONDS
        if has_metrics or has_progress:
            self.read()
        if has_metrics:
            length = float(norm)
            values = {
                "train/loss": report.loss,
                **{f"train/loss/{name}": value for name, value in report.terms.items() if len(report.terms) > 1},
                **({"train/grad_norm": length} if math.isfinite(length) else {}),  # none of a step that was skipped
                **({"train/loss_scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {}),
                "train/learning_rate": rate,
                "train/padding_share": 1 - report.real_tokens / report.padded_tokens,
                **self.speed.take(),
            }
            self.run.tell("metrics", f"step {step}: loss {report.loss:.4f}", {"step": step, "values": values})
        if has_progress:
            step_seconds = (now - self.told_at) / max(1, step - self.told_step)
            self.told_at, self.told_step = now, step
            progress = {
                "step": step,
                "steps": self.steps,
                "epoch": round(step / self.steps_per_epoch, 3),
                "epochs": self.training.epochs,
                "eta_seconds": round((now - self.begun_at) / (step - self.begun_step) * (self.steps - step), 1),
                "loss": report.loss,
                "step_seconds": round(step_seconds, 4),
                "memory_bytes": self.machine.peak_bytes(),
                "device": self.machine.device,
            }
            self.run.tell("progress", f"step {step} of {self.steps}", progress)

    def validate(self) -> None:
        """Measure the validation part after an epoch, and decide whether to go on."""
        self.read()
        self.position.measured_step = self.position.step
        if len(self.validation_rows):
            with self.average.in_place() if self.average is not None else nullcontext():
                self._measure()

    def _measure(self) -> None:
        values = self.task.evaluate(*self._answers(self.validation_rows))
        self.position.validation = values
        step = self.position.step
        self.run.tell(
            "metrics",
            f"epoch {self.position.epoch}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()),
            {"step": step, "values": {f"validation/{name}": value for name, value in values.items()}},
        )
        spec = self.training.early_stopping
        if spec is None:
            return
        if self.position.patience.observe(spec, values.get(spec.metric or ""), step):
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in trainable_state(self.network).items()}
        elif self.position.patience.is_over(spec):
            self.position.is_finished = True
            best = self.position.patience
            self.run.tell(
                "message",
                f"stopped early: {spec.metric} has not improved for {spec.patience} epochs since step {best.best_step}",
            )

    def end(self) -> Fitted:
        """Settle on the final weights, and measure them."""
        self.take_best()
        fitted = self.evaluate()
        self.restore_words()
        return fitted

    def take_best(self) -> None:
        """Put the best weights in, where early stopping kept them, or else their average, where there is one."""
        if self.best is not None:
            self.network.load_state_dict(self.best, strict=False)
        elif self.average is not None:
            self.average.swap()

    def restore_words(self) -> None:
        """Put the words back that no text holds."""
        if isinstance(self.network, NativeClassifier):
            self.network.restore_words()

    def evaluate(self) -> Fitted:
        """Fit calibration and thresholds on validation, then measure the final weights on each part that has rows."""
        metrics: dict[str, dict[str, float]] = {}
        report: dict[str, Any] = {}
        answers = np.zeros((0, self.task.width), np.float32), np.zeros(0)
        spec = self.prepared.spec.evaluation
        for name, rows in (("validation", self.validation_rows), ("test", self.prepared.rows_of(Part.TEST))):
            if len(rows):
                answers = outputs, targets = self._answers(rows)
                if name == "validation":
                    self.task = self.task.fitted(outputs, targets, calibrate=spec.calibrate, thresholds=spec.thresholds)
                metrics[name] = self.task.evaluate(outputs, targets)
                report = {"part": name, **self.task.report(outputs, targets)}
        if test := metrics.get("test"):
            values = {f"test/{name}": value for name, value in test.items()}
            said = ", ".join(f"{name} {value:.4f}" for name, value in test.items())
            self.run.tell("metrics", f"test: {said}", {"step": self.position.step, "values": values})
        state = fitted_state(self.prepared.resolved.state, self.task)
        return Fitted(metrics, report, self.position.step, state, self.task, answers)

    def save_if_due(self) -> None:
        """Write a checkpoint when the last one is old enough."""
        if time.monotonic() - self.saved_at >= self.training.checkpoint_every_seconds:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, and say so. Where the disk is full the run goes on with those it has."""
        if self.position.step == 0:
            return
        self.read()
        try:
            folder = save_checkpoint(
                self.run.checkpoints,
                self.network,
                self.objective,
                self.optimizer,
                self.scaler,
                self.position,
                self.best,
                None if self.average is None else self.average.weights,
                fingerprint=self.fingerprint,
                copied=small_files(self.prepared.base),
            )
        except DiskFullError as error:
            self.run.tell("message", f"{error.strerror}; the newest before it is kept", level="warning")
            return
        finally:
            self.saved_at = time.monotonic()
        data = {
            "folder": folder.name,
            "step": self.position.step,
            "epoch": self.position.step / self.steps_per_epoch,
            "metrics": {f"validation/{name}": value for name, value in self.position.validation.items()},
        }
        self.run.tell("checkpoint", f"checkpoint at step {self.position.step}", data)

    def _answers(self, rows: Rows) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """The network's outputs (N, H) for some rows, and their targets."""
        outputs = logits_of(self.network, self.examples, rows, self.machine)
        if not np.isfinite(outputs).all():
            raise NonFiniteLossError(
                f"the model's outputs became NaN or infinite after step {self.position.step}. "
                "Lower training.optimizer.learning_rate, or keep max_grad_norm at 1."
            )
        return outputs, self.prepared.targets.labels[torch.from_numpy(rows)].numpy()


class _Speed:
    """Rows and real tokens a second since the last report."""

    def __init__(self) -> None:
        self.since, self.rows, self.tokens = time.monotonic(), 0, 0

    def add(self, report: StepReport) -> None:
        self.rows += report.rows
        self.tokens += report.real_tokens

    def take(self) -> dict[str, float]:
        seconds = max(time.monotonic() - self.since, 1e-9)
        speed = {"train/rows_per_second": self.rows / seconds, "train/tokens_per_second": self.tokens / seconds}
        self.since, self.rows, self.tokens = time.monotonic(), 0, 0
        return speed
