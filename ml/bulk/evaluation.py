"""A model measured on a dataset: as a whole, by group, and with texts as careless hands would have written them.

M rows are measured, those with a text and a label: once with their texts as they are, and once for each perturbation.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ml.artifact.tokenizer import Text
from ml.bulk.answers import CHUNK_TEXTS, Answers, Outputs, answer, load_model
from ml.bulk.checks import Selection, group_of, needed_headers, select_rows
from ml.bulk.report import EvaluationReport, GapReport, GroupReport, PerturbationReport, RequestCounts
from ml.bulk.rows import RowError, describe_files, read_rows, write_files
from ml.data.rows import read_columns
from ml.evaluation.groups import FEWEST_ROWS, gaps
from ml.evaluation.perturbations import draws, perturb
from ml.specs.bulk import ModelEvaluation, Perturbation
from ml.specs.errors import refuse
from ml.tasks.agreement import answers_changed
from ml.tasks.base import Targets, Task
from ml.tasks.build import build_task
from ml.tasks.cells import to_distribution, to_list, to_number
from ml.training.errors import StoppedError
from ml.training.run import Placement, RunDirectory


def evaluate(run: RunDirectory, placement: Placement, stop: Callable[[], bool]) -> EvaluationReport:
    """Answer every row that can be measured, measure, and write the files.

    Raises SpecError, StoppedError once `stop()` is true, and UnfitModelError.
    """
    spec, facts = run.read_spec(ModelEvaluation), run.read_facts()
    classifier = load_model(placement)
    cells = read_columns(run.rows, needed_headers(spec, facts))
    selection = select_rows(spec, facts, cells, classifier.description.task)
    texts, errors = _sort_out(selection, read_rows(run.rows, facts.columns))
    texts_changed: Counter[str] = Counter()

    counts = RequestCounts(total=len(texts) + len(errors), completed=0, failed=len(errors))

    def all_texts() -> Iterator[Text]:
        for text in texts.values():
            counts.completed += 1
            yield text
        for kind in spec.perturbations:
            for row, text in texts.items():
                other = _perturb(text, kind, spec.seed, row)
                texts_changed[kind] += other != text
                yield other

    times = 1 + len(spec.perturbations)
    answers = answer(
        run,
        classifier,
        all_texts(),
        times * len(texts),
        counts=counts,
        spec=spec,
        dataset_sha256=placement.dataset_sha256,
        stop=stop,
    )
    answered, *perturbed = answers.split(times)
    others = dict(zip(spec.perturbations, perturbed, strict=True))
    plain = answered.outputs  # (M, H)
    task = build_task(selection.task)
    targets = task.encode([selection.labels[row] for row in texts])
    metrics = task.evaluate(plain, targets)
    groups = []
    if spec.group_column is not None:
        groups = _by_group(task, plain, targets, [group_of(cells[spec.group_column][row]) for row in texts])
    compared = {group.value: group.metrics for group in groups if not group.is_small}
    with write_files(run.output) as files:
        for line in _lines(task, selection, list(texts), answered, others):
            if stop():
                raise StoppedError("stopped while writing the files")
            files.answer(**line)
        for row, error in errors.items():
            files.refuse(row + 1, error)
    told = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    run.tell("message", f"{len(texts)} rows were measured: {told}")
    return EvaluationReport(
        request_counts=files.counts,
        metrics=metrics,
        report=task.report(plain, targets),
        groups=groups,
        gaps={name: GapReport(**asdict(gap)) for name, gap in gaps(compared).items()},
        perturbations=[
            PerturbationReport(
                type=kind,
                texts_changed=texts_changed[kind],
                answers_changed=float(answers_changed(task, plain, other.outputs).mean()),
                metrics=(after := task.evaluate(other.outputs, targets)),
                difference={name: value - metrics[name] for name, value in after.items() if name in metrics},
            )
            for kind, other in others.items()
        ],
        files=describe_files(run.output),
    )


def _sort_out(
    selection: Selection, rows: Iterable[tuple[Text, RowError | None]]
) -> tuple[dict[int, Text], dict[int, RowError]]:
    """The rows that were asked for, by place from 0: the texts of those that can be measured, why the others cannot."""
    texts: dict[int, Text] = {}
    errors: dict[int, RowError] = {}
    for row, (text, error) in enumerate(rows):
        if row not in selection.asked:
            continue
        if error is None and row not in selection.labels:
            error = RowError(
                "missing_label", f"column '{selection.header}' is empty; there is nothing to compare with."
            )
        if error is None:
            texts[row] = text
        else:
            errors[row] = error
    if not texts:
        raise refuse("/dataset", "no row has both a text and a label.", "nothing_to_measure")
    return texts, errors


def _perturb(text: Text, kind: Perturbation, seed: int, row: int) -> Text:
    chance = draws(kind, seed, row)
    if isinstance(text, str):
        return perturb(text, kind, chance)
    first, second = text
    return perturb(first, kind, chance), perturb(second, kind, chance)


def _by_group(task: Task, outputs: Outputs, targets: Targets, values: Sequence[str | None]) -> list[GroupReport]:
    """Metrics of the rows of each value, the most frequent first."""
    found = []
    for value, count in Counter(values).most_common():
        rows = [row for row, other in enumerate(values) if other == value]
        metrics = task.evaluate(outputs[rows], targets[rows])
        found.append(GroupReport(value=value, rows=count, is_small=count < FEWEST_ROWS, metrics=metrics))
    return found


def _lines(
    task: Task, selection: Selection, rows: Sequence[int], plain: Answers, others: Mapping[Perturbation, Answers]
) -> Iterator[dict[str, Any]]:
    """What is written of each row: its answer, what it should be, and the answers to its text when it was changed."""
    for start in range(0, len(rows), CHUNK_TEXTS):
        some = slice(start, start + CHUNK_TEXTS)
        labels = [selection.labels[row] for row in rows[some]]
        right = (task.answers(plain.outputs[some]) == task.truth(task.encode(labels))).reshape(len(labels), -1).all(1)
        perturbed = {kind: other.decode(task, some) for kind, other in others.items()}
        for place, result in enumerate(plain.decode(task, some)):
            line = {**result, "expected": _as_json(labels[place], selection)}
            if "value" not in result:  # a number is never quite right
                line["is_right"] = bool(right[place])
            for kind, results in perturbed.items():
                shown = {name: value for name, value in results[place].items() if name != "scores"}
                line.setdefault("perturbed", {})[kind] = shown
            yield {"row": rows[start + place] + 1, "result": line}


def _as_json(cell: str, selection: Selection) -> Any:
    """A label cell as JSON has it: a name, a list of them, a distribution, or a number."""
    if selection.task.type == "regression":
        return to_number(cell)
    return {"lists": to_list, "distributions": to_distribution}.get(selection.kind, str)(cell)
