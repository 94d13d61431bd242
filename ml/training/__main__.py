"""`python -m ml.training RUN_DIR`: train, try, compare, publish or answer a whole dataset, as the directory asks.

It needs no service around it. `python -m ml.training --spare HOME PARENT_PID NICE` does its imports first and is told
its run directory by standard input; HOME only says whose it is.

Exit status: 0 done · 75 stopped with a checkpoint · 76 disk full · 77 out of memory by its own limit ·
78 non-finite loss · 79 bad spec or data. A signal, or another status, is a crash.
"""

import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

# Before any library looks: nothing is fetched while training, whatever a config asks for.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it reports every new head as missing weights

from ml.artifact.manifest import DiskFullError
from ml.lifeline import tie_to_parent, watch_stdin
from ml.process_limits import limit_process
from ml.specs.errors import SpecError
from ml.specs.job import JobKind
from ml.training.errors import (
    ExitCode,
    ExportError,
    NonFiniteLossError,
    NothingToLearnError,
    StoppedError,
    UnfitModelError,
)
from ml.training.run import Placement, RunDirectory
from ml.training.spare import wait_for_work

log = logging.getLogger("ml.training")


def main(arguments: list[str]) -> int:
    """Run the directory that is named, or that a spare is told later."""
    match arguments:
        case ["--spare", _home, parent_pid, nice]:
            heard: SimpleQueue[bytes] = SimpleQueue()
            _settle_in(int(parent_pid), int(nice), heard.put)
            return run_to_the_end(wait_for_work(heard), is_settled=True)
        case [folder] if Path(folder).is_dir():
            return run_to_the_end(Path(folder), is_settled=False)
    sys.stderr.write("usage: python -m ml.training RUN_DIR   (a folder with spec.json and data.csv)\n")
    return 2


def run_to_the_end(folder: Path, *, is_settled: bool) -> int:
    """Run, and turn the way it ended into an exit status."""
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s %(message)s")
    run = RunDirectory(folder)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, lambda *_: stopping.set())
    placement = run.read_placement()
    try:
        if not is_settled:
            _settle_in(placement.parent_pid, placement.nice)
        if placement.memory_bytes:
            limit_process(resource.RLIMIT_AS, placement.memory_bytes)
        _WORK[placement.kind](run, placement, stopping)
    except StoppedError as error:
        log.info("%s", error)
        return ExitCode.STOPPED
    except SpecError as error:
        run.fail("invalid_spec", error.problems[0].message, error.problems[0].pointer)
        return _report(ExitCode.BAD_INPUT, error)
    except NonFiniteLossError as error:
        run.fail("non_finite_loss", str(error))
        return _report(ExitCode.NON_FINITE_LOSS, error)
    except NothingToLearnError as error:
        run.fail("nothing_to_learn", str(error))
        return _report(ExitCode.BAD_INPUT, error)
    except UnfitModelError as error:
        run.fail("model_unfit", str(error))
        return _report(ExitCode.BAD_INPUT, error)
    except ExportError as error:
        run.fail("export_failed", str(error))
        return _report(ExitCode.BAD_INPUT, error)
    except DiskFullError as error:
        with suppress(OSError):  # which this too may find
            run.fail("disk_full", str(error.strerror))
        return _report(ExitCode.DISK_FULL, error)
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        if not _is_out_of_memory(error):
            raise
        run.fail("out_of_memory", _memory_advice(placement.kind, error))
        return _report(ExitCode.OUT_OF_MEMORY, error)
    return ExitCode.DONE


def _train(run: RunDirectory, placement: Placement, stopping: threading.Event) -> None:
    """Train, or publish the checkpoint that is there: both end with a model."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from ml.data.splits import Part
    from ml.training.checkpoint import remembered_machine
    from ml.training.export import export_artifact
    from ml.training.fit import fit, publish
    from ml.training.machine import look_around
    from ml.training.prepare import prepare

    disable_progress_bar()
    prepared = prepare(run, placement)
    for warning in prepared.resolved.warnings:
        run.tell("message", warning, level="warning")
    before = remembered_machine(run.checkpoints)
    work, training = fit, prepared.spec.training
    if placement.kind == "publish":
        # A checkpoint is measured where there is room: the precision that its training asked for may need a GPU.
        work, training = publish, training.model_copy(update={"precision": "auto"})
    machine = look_around(training, placement, prepared.tokens_that_fit, before)
    torch.set_num_threads(machine.threads)
    fingerprint = {
        "spec": prepared.spec.model_dump(exclude={"name", "metadata"}),
        "rows": len(prepared.tokens.lengths),
        "dataset_sha256": placement.dataset_sha256,
        "base_sha256": prepared.base_sha256,
        "machine": machine.as_dict(),
        "torch": torch.__version__,
    }
    rows = ", ".join(f"{len(prepared.rows_of(part))} {part.name.lower()}" for part in Part)
    run.tell(
        "message",
        f"rows: {rows}; task {prepared.resolved.state.type}; "
        f"{machine.device}, {machine.precision}, {machine.threads} threads, "
        f"{machine.micro_batch_tokens} tokens at once",
    )
    if prepared.begun is not None:
        run.tell("message", f"trains {prepared.spec.model} further: {prepared.begun}")
    fitted = work(run, prepared, machine, fingerprint, stopping.is_set)
    run.tell("message", "exporting")
    export_artifact(run, prepared, fitted, dataset_sha256=placement.dataset_sha256, source=placement.source)
    run.tell("message", f"finished after {fitted.steps} steps", {"metrics": fitted.metrics})


def _dry_run(run: RunDirectory, placement: Placement, stopping: threading.Event) -> None:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from ml.training.dry_run import dry_run
    from ml.training.machine import look_around
    from ml.training.prepare import prepare

    disable_progress_bar()
    prepared = prepare(run, placement)
    machine = look_around(prepared.spec.training, placement, prepared.tokens_that_fit)
    torch.set_num_threads(machine.threads)

    def told(done: int, steps: int) -> None:
        run.tell("progress", f"step {done} of {steps}", {"step": done, "steps": steps})

    report = dry_run(prepared, machine, told=told, stop=stopping.is_set)
    for warning in report.warnings:
        run.tell("message", warning, level="warning")
    run.write_result(report)


def _compare(run: RunDirectory, placement: Placement, stopping: threading.Event) -> None:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from ml.comparisons import resolve_comparison
    from ml.memory import tokens_that_fit
    from ml.specs.comparison import Comparison
    from ml.training.compare import compare
    from ml.training.machine import look_around
    from ml.training.prepare import Corpus

    disable_progress_bar()
    given = run.read_spec(Comparison)
    corpus = Corpus(run, placement, given)
    comparison = resolve_comparison(given, corpus.facts, corpus.base_facts, corpus.cells)
    for warning in comparison.warnings:
        run.tell("message", warning, level="warning")

    def fitting(spare: int) -> int:
        return min(tokens_that_fit(arm, corpus.base_facts, spare) for arm in comparison.arms)

    machine = look_around(comparison.spec.training, placement, fitting)
    torch.set_num_threads(machine.threads)
    fingerprint = {
        "spec": comparison.spec.model_dump(mode="json", exclude={"name", "metadata"}),
        "rows": len(corpus.tokens.lengths),
        "dataset_sha256": placement.dataset_sha256,
        "base_sha256": corpus.base_sha256,
    }
    report = compare(run, corpus, comparison, machine, fingerprint, stopping.is_set)
    run.write_result(report)
    run.tell("message", report.conclusion)


def _predict(run: RunDirectory, placement: Placement, stopping: threading.Event) -> None:
    from ml.bulk.prediction_batch import predict

    run.write_result(predict(run, placement, stopping.is_set))


def _evaluate(run: RunDirectory, placement: Placement, stopping: threading.Event) -> None:
    from ml.bulk.evaluation import evaluate

    run.write_result(evaluate(run, placement, stopping.is_set))


_WORK: dict[JobKind, Callable[[RunDirectory, Placement, threading.Event], None]] = {
    "training": _train,
    "publish": _train,
    "dry_run": _dry_run,
    "comparison": _compare,
    "prediction_batch": _predict,
    "evaluation": _evaluate,
}


def _settle_in(parent_pid: int | None, nice: int, heard: Callable[[bytes], None] | None = None) -> None:
    """Die with the parent, and step back. Once in a process, and before any library starts a thread."""
    if parent_pid is not None:
        # A checkpoint is whole or not there, so there is nothing to save first.
        tie_to_parent(parent_pid, signal_number=signal.SIGKILL)
        watch_stdin(lambda: os.kill(os.getpid(), signal.SIGKILL), heard)
    if nice:
        os.nice(nice)


def _is_out_of_memory(error: BaseException) -> bool:
    words = str(error).lower()
    signs = (
        "out of memory",
        "can't allocate memory",
        "cannot allocate memory",
        "bad_alloc",
        "failed to map segment",  # of a library, where the limit is too low even to import torch
    )
    return isinstance(error, MemoryError) or any(sign in words for sign in signs)


def _memory_advice(kind: JobKind, error: BaseException) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if kind in ("prediction_batch", "evaluation"):
        mend = "Cut the dataset into several"
    else:
        mend = (
            "Lower training.max_length, training.micro_batch_rows where it is set, or training.batch_size where a loss "
            "couples the rows of a step"
        )
    return (
        f"the trainer ran out of memory ({first[:200]}). {mend}; or give the worker more "
        "(MINIMAND_TRAINER_MEMORY_BYTES)."
    )


def _report(code: ExitCode, error: BaseException) -> int:
    log.error("%s", error)
    return code


if __name__ == "__main__":
    status = main(sys.argv[1:])
    # To leave takes seconds, and Python first gives signals back their default: a stop that came then would kill a run
    # that is done, and it would be done again.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)
