"""Every row of a dataset answered: a line each in output.jsonl, or in errors.jsonl where there is nothing to answer."""

from collections.abc import Callable, Iterator

from ml.artifact.tokenizer import Text
from ml.bulk.answers import CHUNK_TEXTS, answer, chunks, load_model
from ml.bulk.report import PredictionBatchReport, RequestCounts
from ml.bulk.rows import RowError, describe_files, read_rows, write_files
from ml.specs.bulk import PredictionBatch
from ml.training.errors import StoppedError
from ml.training.run import Placement, RunDirectory


def predict(run: RunDirectory, placement: Placement, stop: Callable[[], bool]) -> PredictionBatchReport:
    """Answer every row, and write the files. Raises StoppedError once `stop()` is true, and UnfitModelError."""
    spec, facts = run.read_spec(PredictionBatch), run.read_facts()
    classifier = load_model(placement)

    def rows() -> Iterator[tuple[Text, RowError | None]]:
        return read_rows(run.rows, facts.columns)

    counts = RequestCounts(total=facts.rows, completed=0, failed=0)

    def texts() -> Iterator[Text | None]:
        for text, error in rows():
            counts.completed += error is None
            counts.failed += error is not None
            yield text if error is None else None

    answers = answer(
        run,
        classifier,
        texts(),
        facts.rows,
        counts=counts,
        spec=spec,
        dataset_sha256=placement.dataset_sha256,
        stop=stop,
    )
    with write_files(run.output) as files:
        for start, chunk in zip(range(0, facts.rows, CHUNK_TEXTS), chunks(rows()), strict=True):
            if stop():
                raise StoppedError("stopped while writing the files")
            errors = [error for _, error in chunk]
            asked = [start + place for place, error in enumerate(errors) if error is None]
            results = iter(answers.decode(classifier.task, asked) if asked else ())
            for row, error in enumerate(errors, start + 1):
                if error is None:
                    files.answer(row, next(results))
                else:
                    files.refuse(row, error)
    run.tell("message", f"{files.counts.completed} rows were answered, and {files.counts.failed} could not be")
    return PredictionBatchReport(request_counts=files.counts, files=describe_files(run.output))
