"""Label names to ids and back, and what a score means."""

import numpy as np
import pytest

from ml.tasks.text_classification import TextClassificationTask

TASK = TextClassificationTask(("no", "maybe", "yes"))


def test_cells_become_ids_in_the_order_of_the_labels() -> None:
    assert TASK.encode(["yes", "no", "maybe", "yes"]).tolist() == [2, 0, 1, 2]
    assert TASK.head_size == 3


def test_an_unknown_cell_is_no_label() -> None:
    with pytest.raises(KeyError, match="perhaps"):
        TASK.encode(["perhaps"])


def test_the_likeliest_label_is_the_answer_with_its_probability() -> None:
    logits = np.log(np.array([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]], np.float32))
    first, second = TASK.decode(logits)
    assert (first["label"], second["label"]) == ("maybe", "no")
    assert first["score"] == pytest.approx(0.5)
    assert first["scores"] == pytest.approx({"no": 0.2, "maybe": 0.5, "yes": 0.3})
    assert list(first["scores"]) == ["no", "maybe", "yes"]
    assert sum(second["scores"].values()) == pytest.approx(1)


def test_decoding_undoes_encoding() -> None:
    ids = TASK.encode(["yes", "no", "maybe"])
    assert [result["label"] for result in TASK.decode(np.eye(3)[ids] * 5)] == ["yes", "no", "maybe"]


def test_metrics_are_those_of_the_likeliest_label() -> None:
    logits = np.log(np.array([[0.6, 0.2, 0.2], [0.1, 0.8, 0.1], [0.5, 0.1, 0.4]], np.float32))
    targets = np.array([0, 1, 2])
    values = TASK.evaluate(logits, targets)
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert values["loss"] == pytest.approx(-np.log([0.6, 0.8, 0.4]).mean())
    report = TASK.report(logits, targets)
    assert report["no"] == pytest.approx({"precision": 0.5, "recall": 1, "f1": 2 / 3, "rows": 1})
    assert report["yes"] == {"precision": 0, "recall": 0, "f1": 0, "rows": 1}
