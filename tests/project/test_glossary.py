"""The glossary of docs/architecture.md equals the code: each word is used, and no second word for the same thing."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.imports import PACKAGE, ROOT

#: a pattern -> the word of the glossary that it would be a second name for, and where it means something else
SYNONYMS: dict[str, tuple[str, tuple[str, ...]]] = {
    r"journal(?!_mode)": ("log", ()),
    r"sequence numbers?": ("LSN", ()),
    r"tombstones?": ("EventRemoved", ()),
    r"read models?": ("projection", ()),
    r"batcher": ("projector", ()),
    r"graph(?!_rows_min)": ("HNSW index", ()),
    # of a database's result, and of an index while a list is walked
    r"cursors?": ("LSN", ("doctor/comparison.py", "projection/sql/", "projection/pixeltable/", "memory/schema.py")),
    # where an event that cannot be applied would be meant: a log that refuses writes is poisoned
    r"_?poison(?:ed|s)?": ("dead letter", ("log/", "engine/", "store/", "errors.py")),
}
#: the words for what travels together, each in the rooms that it does not belong to; with what does stand there
ELSEWHERE = {
    # the key of verify's JSON has its name from the first version
    r"batch(?:es)?": (("log/", "doctor/", "cli/"), {'name="batches"'}),
    r"frames?": (("projection/", "embedding/"), set[str]()),
}


def terms() -> list[str]:
    """What the glossary explains."""
    page = (ROOT / "docs/architecture.md").read_text()
    words = page[page.index("## The words") : page.index("## The parts")]
    return re.findall(r"^(.+)\n: ", words, re.MULTILINE)


def uses_of(pattern: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Where ``pattern`` is a word, or a part of a name, in the files of ``folder``: the place and the line."""
    word = re.compile(rf"(?i)(?<![a-z]){pattern}(?![a-z])")
    for path, text in texts_of(folder).items():
        for match in word.finditer(text):
            number = text.count("\n", 0, match.start())
            yield f"{path}:{number + 1}", text.splitlines()[number].strip()


@functools.cache
def texts_of(folder: Path) -> dict[str, str]:
    """Every file of ``folder``, by its path in there."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.py"))}


def second_names(folder: Path) -> list[str]:
    """The lines of ``folder`` that have a synonym, or a word in a room that it does not belong to."""
    found = []
    for pattern, (word, elsewhere) in SYNONYMS.items():
        uses = uses_of(pattern, folder)
        found += [f"{place}: say {word}: {line}" for place, line in uses if not place.startswith(elsewhere)]
    for pattern, (rooms, but) in ELSEWHERE.items():
        uses = (use for use in uses_of(pattern, folder) if use[0].startswith(rooms))
        found += [f"{place}: another word: {line}" for place, line in uses if not any(each in line for each in but)]
    return sorted(found)


@pytest.mark.parametrize("term", terms())
def test_every_word_of_the_glossary_is_in_the_code(term: str) -> None:
    pattern = re.escape(term).replace(r"\ ", "[ _]?") + "(?:e?s|ing|ed)?"
    assert len(list(uses_of(pattern, PACKAGE))) >= 3


def test_the_code_has_no_second_names() -> None:
    assert len(terms()) > 15
    assert second_names(PACKAGE) == []


def test_a_second_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "x.py").write_text("journal_name = 1\n# one batch\nframe = graph_rows_min\n")
    assert [found.partition(": ")[0] for found in second_names(tmp_path)] == ["log/x.py:1", "log/x.py:2"]
