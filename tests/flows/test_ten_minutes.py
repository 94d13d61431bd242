"""docs/ten-minutes.md is true: its commands run as they stand, in its order, and are answered as it says."""

import json
import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service import RunningService, running

PAGE = Path(__file__).parents[2] / "docs" / "ten-minutes.md"
_BLOCK = re.compile(r"^```(sh|json)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ROUTE = re.compile(r"\*\*(GET|POST|PUT|DELETE) (/v1/\S+)\*\*")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running(tmp_path_factory.mktemp("ten") / ".minimand", has_tiny_base=False) as service:
        service.start_up()
        yield service


def test_its_commands_are_answered_as_it_says(service: RunningService) -> None:
    folder = service.home.parent
    blocks = _BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    commands = [text for language, text in blocks if language == "sh"]
    script = "".join(f"{{\n{text}}} > {place}.out\n" for place, text in enumerate(commands))
    environment = {**service.environment, "URL": service.url}
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    place, checked = -1, 0
    for language, text in blocks:
        if language == "sh":
            place += 1
            continue
        answer = json.loads((folder / f"{place}.out").read_text())
        assert _is_like(json.loads(text), answer), f"the page says {text}\nbut {answer}"
        checked += 1
    assert checked >= 7


def test_the_routes_it_names_are_on_the_page(service: RunningService) -> None:
    paths = httpx.get(f"{service.url}/openapi.json").json()["paths"]
    named = _ROUTE.findall(PAGE.read_text(encoding="utf-8"))
    assert len(named) >= 10
    for method, path in named:
        assert method.lower() in paths.get(path, {}), f"{method} {path}"


def _is_like(said: Any, answer: Any) -> bool:
    """Whether an answer holds what the page says: … stands for any text, and a number with a point for any number."""
    if isinstance(said, dict):
        return isinstance(answer, dict) and all(
            name in answer and _is_like(value, answer[name]) for name, value in said.items()
        )
    if isinstance(said, list):
        return isinstance(answer, list) and len(said) == len(answer) and all(map(_is_like, said, answer))
    if isinstance(said, str):
        return isinstance(answer, str) and fnmatchcase(answer, said.replace("[", "[[]").replace("…", "*"))
    if isinstance(said, float):
        return isinstance(answer, float)
    return bool(said == answer)


@pytest.mark.parametrize(
    ("said", "answer"),
    [({"a": 1}, {"a": 2}), ({"a": 1}, {}), ({"a": "x…"}, {"a": "y"}), ([1], [1, 2]), ({"a": 0.5}, {"a": None})],
)
def test_another_answer_would_be_noticed(said: Any, answer: Any) -> None:
    assert not _is_like(said, answer)
