"""Fixtures of the program's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixelmemory.memory.events import Event
from tests.harness.cli_tools import Program, make_log, sample

EVENTS = 60


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("COLUMNS", "120")
    return Program(capsys)


@pytest.fixture
def events() -> list[Event]:
    return sample(EVENTS)


@pytest.fixture
def store(tmp_path: Path, events: list[Event]) -> Path:
    """A store of several segments, closed, without tables."""
    return make_log(tmp_path / "home" / "notes", events)
