"""What every metric asks of its input."""

from typing import Any

from numpy.typing import NDArray


def require_rows(truth: NDArray[Any], purpose: str) -> None:
    """Raise ValueError unless `truth` (N, …) holds at least one row."""
    if len(truth) == 0:
        raise ValueError(f"truth has no rows: {purpose} needs at least one labelled row.")
