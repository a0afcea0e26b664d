"""An open that takes long says on a terminal what it is doing, and is silent otherwise."""

from __future__ import annotations

import io
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pixelmemory.store import opening_line
from pixelmemory.store.opening_line import OpeningLine
from tests.harness.engine_tools import open_memory


class Terminal(io.StringIO):
    """Standard error as a terminal; ``said`` is set with each line."""

    def __init__(self) -> None:
        super().__init__()
        self.said = threading.Event()

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        self.said.set()


def terminal_of(monkeypatch: pytest.MonkeyPatch, after_seconds: float) -> Terminal:
    """Standard error from now on; no fixture, since pytest puts its own there when the test begins."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(opening_line, "AFTER_SECONDS", after_seconds)
    return terminal


def test_each_step_is_said_once_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch, 0.01)
    with OpeningLine("notes", shown=True) as line:
        line.doing("loading the model all-MiniLM-L6-v2")
        assert terminal.said.wait(60)
        line.doing("starting the database")
    line.doing("nothing any more")
    assert terminal.getvalue().splitlines()[:2] == [
        "pixelmemory: opening notes: loading the model all-MiniLM-L6-v2 ...",
        "pixelmemory: opening notes: starting the database ...",
    ]


def test_a_quick_open_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch, 3600.0)
    with OpeningLine("notes", shown=True) as line:
        line.doing("starting the database")
    assert line._timer is not None
    assert line._timer.finished.is_set()
    assert terminal.getvalue() == ""


def test_nothing_is_said_without_progress_or_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert OpeningLine("notes", shown=True)._timer is not None
    assert OpeningLine("notes", shown=False)._timer is None
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert OpeningLine("notes", shown=True)._timer is None
    monkeypatch.setattr(sys, "stderr", None)  # a program without a console
    assert OpeningLine("notes", shown=True)._timer is None


def test_an_open_says_its_steps(tmp_path: Path, store_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    said = OpeningLine.doing

    def note(line: Any, what: str) -> None:
        steps.append(what)
        said(line, what)

    monkeypatch.setattr(OpeningLine, "doing", note)
    with open_memory(tmp_path, store_name):
        pass
    assert steps == ["starting the database", "opening the tables"]
