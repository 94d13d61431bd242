"""The tail of a run's events: whole lines, each once, from wherever it was left."""

import json
from pathlib import Path

import pytest

from workers.events import EventTail


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def _append(file: Path, text: str) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(text)


def _line(number: int, message: str = "") -> str:
    return json.dumps({"n": number, "message": message}, ensure_ascii=False) + "\n"


def _take(tail: EventTail) -> list[int]:
    """Read what is new, and say that it is stored."""
    lines = tail.read()
    if lines:
        tail.offset = lines[-1][1]
    return [line["n"] for line, _ in lines]


def test_before_the_file_is_there_nothing_is_told(file: Path) -> None:
    assert EventTail(file).read() == []


def test_an_empty_file_tells_nothing(file: Path) -> None:
    file.touch()
    assert EventTail(file).read() == []


def test_each_line_is_taken_once(file: Path) -> None:
    tail = EventTail(file)
    _append(file, _line(1) + _line(2))
    assert _take(tail) == [1, 2]
    assert _take(tail) == []
    _append(file, _line(3))
    assert _take(tail) == [3]


def test_a_half_line_waits_for_its_end(file: Path) -> None:
    tail = EventTail(file)
    whole = _line(2, "größer, 更大")
    for end in range(len(whole)):
        file.write_text(_line(1) + whole[:end], encoding="utf-8")
        assert [line["n"] for line, _ in tail.read()] == [1], f"after {end} characters"
    assert _take(tail) == [1]
    file.write_text(_line(1) + whole, encoding="utf-8")
    assert _take(tail) == [2]


def test_a_line_cut_within_a_character_waits_too(file: Path) -> None:
    content = _line(1, "更大").encode()
    file.write_bytes(content[:-6])
    tail = EventTail(file)
    assert tail.read() == []
    file.write_bytes(content)
    assert _take(tail) == [1]


def test_lines_that_were_not_stored_come_again(file: Path) -> None:
    tail = EventTail(file)
    _append(file, _line(1) + _line(2) + _line(3))
    first = tail.read()
    assert tail.read() == first
    tail.offset = first[1][1]
    assert _take(tail) == [3]


def test_the_offset_of_a_line_is_the_byte_behind_it(file: Path) -> None:
    _append(file, _line(1, "更大") + _line(2))
    content = file.read_bytes()
    for line, offset in EventTail(file).read():
        assert content[:offset].endswith(b"\n")
        assert content[:offset].count(b"\n") == line["n"]


@pytest.mark.parametrize("odd", ["\r", "\u2028", "\x85", "\x0b", "a\r\nb"])
def test_only_a_newline_ends_a_line(file: Path, odd: str) -> None:
    _append(file, _line(1, odd) + _line(2))
    lines = EventTail(file).read()
    assert [line["message"] for line, _ in lines] == [odd, ""]
