"""What a job will cost: a rough figure each, and a step that cannot be cut is refused where it would not fit."""

from typing import Any

import pytest

from app.jobs.estimate import PROGRAM_BYTES, Estimate, check_memory, estimate
from ml.specs.errors import Problem, SpecError
from ml.specs.facts import BaseFacts
from tests.ml.datasets import GROUPS, LABELS, Dataset, base

MINILM = {"parameters": 22_700_000, "vocabulary": 30_522}
WEIGHTS = 16 * 22_700_000
MANY = Dataset(LABELS * 20, group=GROUPS * 20)
SUPCON = {"terms": [{"loss": "cross_entropy"}, {"loss": "supcon"}]}


def estimated(on: BaseFacts | None = None, **body: Any) -> Estimate:
    on = on or base(**MINILM)
    return estimate(MANY.resolve(on, **body), MANY.facts, on, tokens_per_second=100.0)


def activations(on: BaseFacts | None = None, **body: Any) -> int:
    weights = 16 * (on.parameters if on else 22_700_000)
    return estimated(on, **body).memory_bytes - weights


def warn(limit: int = 0, **body: Any) -> list[str]:
    on = base(**MINILM)
    return check_memory(MANY.resolve(on, **body), on, limit)


def refuse(limit: int, **body: Any) -> Problem:
    with pytest.raises(SpecError) as caught:
        warn(limit, **body)
    (problem,) = caught.value.problems
    return problem


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("hidden_size", "layers", "heads", "rows", "length", "measured"),
    [
        (384, 6, 12, 32, 128, 1.42e9),
        (384, 6, 12, 128, 128, 5.46e9),
        (384, 6, 12, 16, 512, 5.46e9),
        (768, 12, 12, 16, 128, 2.28e9),
        (256, 4, 4, 64, 64, 0.46e9),
    ],
)
def test_what_a_pass_keeps_is_near_what_was_measured(
    hidden_size: int, layers: int, heads: int, rows: int, length: int, measured: float
) -> None:
    on = base(hidden_size=hidden_size, layers=layers, heads=heads)
    training = {"batch_size": rows, "micro_batch_rows": rows, "max_length": length}
    assert activations(on, training=training) == pytest.approx(measured, rel=0.06)


def test_a_step_is_cut_but_for_losses_that_couple_its_rows() -> None:
    def at(batch_size: int, loss: Any, **training: Any) -> int:
        return activations(loss=loss, training={"batch_size": batch_size, **training})

    assert at(512, "cross_entropy") == at(64, "cross_entropy")
    assert at(512, "cross_entropy", micro_batch_rows=8) == at(8, "cross_entropy")
    for coupled in (SUPCON, "group_dro", "v_rex"):
        assert at(512, coupled) == 8 * at(64, coupled) == 32 * at(64, "cross_entropy")  # of which 16 rows go at once
        assert at(512, coupled, micro_batch_rows=8) == at(512, coupled)
    assert at(4096, SUPCON) == at(2000, SUPCON)  # there are no more training rows


def test_a_further_pass_keeps_as_much_again() -> None:
    def beside(*terms: str) -> int:
        return activations(loss={"terms": [{"loss": loss} for loss in ("cross_entropy", *terms)]})

    assert beside("r_drop") == beside("fgm") == 2 * beside()
    assert beside("r_drop", "fgm") == 3 * beside()


def test_a_frozen_encoder_keeps_no_layer_and_its_step_is_one_of_features() -> None:
    frozen = {"loss": "group_dro", "tuning": "frozen"}
    few, many = (estimated(**frozen, training={"batch_size": size}).memory_bytes for size in (64, 4096))
    assert few == many < estimated().memory_bytes / 2
    assert warn(PROGRAM_BYTES + 200_000_000, **frozen, training={"batch_size": 4096}) == []


@pytest.mark.parametrize(("loss", "name"), [(SUPCON, "supcon"), ("group_dro", "group_dro")])
def test_a_coupled_step_beyond_the_limit_is_refused_with_a_batch_that_fits(loss: Any, name: str) -> None:
    limit = 6_000_000_000
    problem = refuse(limit, loss=loss, training={"batch_size": 512})
    assert (problem.pointer, problem.code) == ("/training/batch_size", "too_much_memory")
    assert problem.message == (
        f"'{name}' couples the 512 rows of a step, so they cannot be cut, and at max_length 128 they need up to "
        "24.7 GB at once; the limit is 6.0 GB. Lower batch_size to 71, or shorten max_length."
    )
    assert warn(limit, loss=loss, training={"batch_size": 71}) == []
    assert refuse(limit, loss=loss, training={"batch_size": 72}).code == "too_much_memory"
    assert warn(limit, loss="cross_entropy", training={"batch_size": 512}) == []


def test_where_no_batch_fits_a_shorter_text_may() -> None:
    problem = refuse(PROGRAM_BYTES + WEIGHTS + 60_000_000, loss=SUPCON)
    assert problem.message.endswith("Shorten max_length.")


def test_a_base_of_which_not_even_one_row_can_train_is_refused_with_what_it_takes() -> None:
    limit = PROGRAM_BYTES + 300_000_000
    problem = refuse(limit, loss="cross_entropy")
    assert (problem.pointer, problem.code) == ("/model", "too_much_memory")
    assert "takes up to 3.0 GB, for its weights and a row of 128 tokens; the limit is 2.9 GB" in problem.message
    assert warn(limit, loss="cross_entropy", tuning="lora") == []  # one in twenty weights has moments
    assert warn(limit, loss="cross_entropy", tuning="frozen") == []


def test_much_memory_is_warned_of_where_no_limit_is_known() -> None:
    (warning,) = warn(loss=SUPCON, training={"batch_size": 512})
    assert "'supcon' couples the 512 rows of a step" in warning
    assert "21.7 GB" in warning
    assert warn(loss=SUPCON, training={"batch_size": 64}) == []
    assert warn(loss="cross_entropy", training={"batch_size": 512}) == []


# ----------------------------------------------------------------------------------------------------------------- time


def test_seconds_are_the_tokens_of_all_steps_at_the_speed_of_earlier_trainings() -> None:
    whole = estimated(training={"epochs": 2})
    assert whole.seconds == pytest.approx(2 * whole.tokens_per_epoch / 100)
    some = estimated(training={"epochs": 2, "max_steps": whole.steps // 4})
    assert some.seconds == pytest.approx(whole.seconds * some.steps / whole.steps)


def test_seconds_are_unknown_without_earlier_trainings_and_for_a_frozen_encoder() -> None:
    on = base(**MINILM)
    assert estimate(MANY.resolve(on), MANY.facts, on, tokens_per_second=None).seconds is None
    assert estimated(tuning="frozen").seconds is None
