"""How much better a model is for one group of rows than for another."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

FEWEST_ROWS = 30  # of a group whose metrics say enough to be compared

Group = TypeVar("Group", bound=Hashable)


@dataclass(frozen=True)
class Gap(Generic[Group]):
    """The largest difference of a metric between two groups, and which they are."""

    gap: float
    lowest: Group
    highest: Group


def gaps(metrics: Mapping[Group, Mapping[str, float]]) -> dict[str, Gap[Group]]:
    """Of each metric that two groups have; its value in the highest less that in the lowest."""
    found = {}
    for name in dict.fromkeys(name for values in metrics.values() for name in values):
        having = [group for group, values in metrics.items() if name in values]
        if len(having) > 1:
            lowest = min(having, key=lambda group: metrics[group][name])
            highest = max(having, key=lambda group: metrics[group][name])
            found[name] = Gap(metrics[highest][name] - metrics[lowest][name], lowest, highest)
    return found
