"""Base models an operator offers: the bundled one and registered folders. Reads their configs, loads nothing."""

from collections.abc import Mapping
from pathlib import Path

from app.base_models.check import check_registered
from ml.bases import bundled_bases, find_base, read_base_facts
from ml.specs.facts import BaseFacts


class BaseModelService:
    """The catalogue."""

    def __init__(self, registered: Mapping[str, Path]) -> None:
        """Raises UnfitBaseError for a registered folder that cannot be a base model: better now than in a job."""
        self._registered = dict(registered)
        for name, folder in self._registered.items():
            check_registered(name, folder)
        self._facts = {name: read_base_facts(name, folder) for name, folder in self._registered.items()}

    def get(self, name: str) -> BaseFacts:
        """What is known of a base model. Raises SpecError for a name that isn't there."""
        if name not in self._facts:
            self._facts[name] = read_base_facts(name, find_base(name, self._registered))
        return self._facts[name]

    def __contains__(self, name: str) -> bool:
        """Whether a base model has this name."""
        return name in bundled_bases() | self._registered

    def list(self) -> list[BaseFacts]:
        """Every base model, by name."""
        return [self.get(name) for name in sorted(bundled_bases() | self._registered)]
