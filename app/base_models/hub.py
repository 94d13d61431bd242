"""Fetches base models that an operator allows from a hub of the Hugging Face kind: a name, pinned to a commit.

The network is used here alone, and only when asked to: what serves and trains reads the folder that was left.
"""

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from app.base_models.check import check_registered

_REFERENCE = re.compile(r"hf:([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)@([0-9a-f]{40})")
# What a base model is made of; the rest of a repository is not even fetched.
_PATTERNS = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
]


@dataclass(frozen=True)
class HubModel:
    """A repository at one commit."""

    repository: str
    revision: str  # 40 hexadecimal digits

    @classmethod
    def parse(cls, text: str) -> "HubModel | None":
        """`hf:owner/name@commit`; None for a text that is a folder. Raises ValueError for one that is neither."""
        if not text.startswith("hf:"):
            return None
        found = _REFERENCE.fullmatch(text)
        if found is None:
            raise ValueError(
                f"'{text}' must be hf:owner/name@ and the 40 hexadecimal digits of a commit: a branch or a tag may "
                "become something else"
            )
        return cls(*found.groups())

    def folder_in(self, home: Path) -> Path:
        """Where it is kept once it was fetched."""
        return home / "bases" / f"{self.repository.replace('/', '--')}@{self.revision}"


def fetch(name: str, model: HubModel, home: Path) -> Path:
    """Fetch, check, and keep a model; one that is there already is not asked for again.

    Raises OSError where the hub does not give it, and UnfitBaseError for what it gave; then nothing is kept.
    """
    folder = model.folder_in(home)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download  # asks for a second, and few need it

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as scratch:
        fetched = Path(scratch) / "model"
        snapshot_download(model.repository, revision=model.revision, allow_patterns=_PATTERNS, local_dir=fetched)
        shutil.rmtree(fetched / ".cache", ignore_errors=True)  # its own notes of what it fetched
        check_registered(name, fetched)
        fetched.rename(folder)
    return folder
