"""Counts a dataset's texts, labels and splits batch by batch. It knows no file."""

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ml.specs.errors import SpecError, did_you_mean, refuse, show
from ml.specs.facts import MAX_LABELS, SPLIT_NAMES, Columns, DatasetFacts, Role

# Labels are names. Where they are longer together, the column holds texts, and counting them would fill the memory.
MAX_LABEL_CHARACTERS = 1_000_000


class Tally:
    """The facts so far."""

    def __init__(self, headers: Sequence[str], columns: Columns, recognised: Sequence[Role]) -> None:
        self._headers = list(headers)
        self._columns = columns
        self._recognised = list(recognised)
        self.rows = 0
        self._text_characters = 0
        self._empty_texts = _Missing()
        self._missing_labels = _Missing()
        self._labels: Counter[str] = Counter()
        self._has_too_many_labels = False
        self._splits: Counter[str] = Counter()

    def add(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Count a batch; return it with its split names made canonical."""
        columns = self._columns
        first_row = self.rows + 1
        self._empty_texts.add(_is_blank(batch[columns.text]), first_row)
        for header in (columns.text, columns.text_pair):
            if header is not None:
                self._text_characters += pc.sum(pc.utf8_length(batch[header])).as_py() or 0
        if columns.label is not None:
            self._missing_labels.add(_is_blank(batch[columns.label]), first_row)
            self._count_labels(batch[columns.label])
        if columns.split is not None:
            splits = canonical_splits(batch[columns.split], columns.split, first_row)
            self._splits.update(_count_values(splits))
            batch = batch.set_column(self._headers.index(columns.split), columns.split, splits)
        self.rows += batch.num_rows
        return batch

    def facts(self) -> DatasetFacts:
        """What was found. With too many labels to count, `distinct_labels` is MAX_LABELS + 1."""
        return DatasetFacts(
            rows=self.rows,
            headers=self._headers,
            columns=self._columns,
            recognised=self._recognised,
            empty_texts=self._empty_texts.count,
            first_empty_text=self._empty_texts.first_row,
            missing_labels=self._missing_labels.count,
            first_missing_label=self._missing_labels.first_row,
            labels=dict(sorted(self._labels.items(), key=lambda item: (-item[1], item[0]))),
            distinct_labels=MAX_LABELS + 1 if self._has_too_many_labels else len(self._labels),
            splits={name: self._splits[name] for name in dict.fromkeys(SPLIT_NAMES.values()) if name in self._splits},
            text_characters=self._text_characters,
        )

    def _count_labels(self, cells: pa.Array) -> None:
        if self._has_too_many_labels:
            return
        self._labels.update({label: count for label, count in _count_values(cells).items() if label.strip()})
        if len(self._labels) > MAX_LABELS or sum(map(len, self._labels)) > MAX_LABEL_CHARACTERS:
            self._has_too_many_labels = True
            self._labels.clear()


class _Missing:
    """How many rows lack something, and which is the first."""

    def __init__(self) -> None:
        self.count = 0
        self.first_row: int | None = None

    def add(self, is_missing: pa.Array, first_row: int) -> None:
        count = is_missing.true_count
        if count and self.first_row is None:
            self.first_row = first_row + is_missing.index(True).as_py()
        self.count += count


def canonical_splits(cells: pa.Array, header: str, first_row: int) -> pa.Array:
    """Map each cell to train, validation or test; refuse what names none of them."""
    coded = cells.dictionary_encode()
    names = [SPLIT_NAMES.get(value.strip().lower()) for value in coded.dictionary.to_pylist()]
    splits = pa.array(names, pa.string()).take(coded.indices)
    if splits.null_count:
        at = splits.is_null().index(True).as_py()
        raise _unknown_split(cells[at].as_py(), header, first_row + at)
    return splits


def _unknown_split(value: str | None, header: str, row: int) -> SpecError:
    return refuse(
        "/columns/split",
        f"row {row:,}: column '{header}' is {show(value)}, and must be train, validation (or dev) or test."
        f"{did_you_mean(value, SPLIT_NAMES)} If the column is no split, rename it.",
        "unknown_split",
    )


def _is_blank(cells: pa.Array) -> pa.Array:
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(cells), ""), True)


def _count_values(cells: pa.Array) -> dict[str, int]:
    counts = pc.value_counts(cells.drop_null())
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
