"""Pixeltable that does not start: the error says why, whatever it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pixeltable as pxt
import pytest

from pixelmemory import ProjectionUnavailableError
from pixelmemory.projection.sql.failures import first_line

if TYPE_CHECKING:
    from tests.conftest import OpenMemory


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a reason"), "ValueError: a reason"),
        (ValueError("\n a reason\nand more"), "ValueError: a reason"),
        (ValueError("a reason in row {'content': 'private'}"), "ValueError: a reason"),
        (AssertionError(), "AssertionError()"),
        (RuntimeError(" \n "), "RuntimeError(' \\n ')"),
    ],
)
def test_the_first_line_of_an_error_is_never_empty(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_a_start_that_fails_without_a_text_is_named(open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(pxt, "init", fail)
    with pytest.raises(ProjectionUnavailableError, match=r"^Pixeltable did not start: AssertionError\(\)$"):
        open_memory()
    monkeypatch.undo()
    with open_memory() as mem:
        assert mem.count() == 0
