"""The tables in the docs are those that the commands wrote, of what there is now."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import msgspec

from benchmarks.__main__ import DOCS_RUN, DOCS_TABLES, report
from benchmarks.catalogue import NAMES
from benchmarks.report import Run
from tests.harness.imports import ROOT
from tests.harness.mutation_table import NOT_CAUGHT, NOT_RUN, Planted, planned, read_table, record


def test_the_mutation_table_is_that_of_the_gate() -> None:
    rows = read_table()
    assert [(row.name, row.place) for row in rows] == [(bug.name, bug.place) for bug in planned()]
    assert len({row.name for row in rows}) == len(rows) > 150


def test_every_bug_is_caught_by_a_test_that_exists() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for row in read_table():
        assert row.caught_by not in (NOT_RUN, NOT_CAUGHT), f"make mutations PYTEST_ARGS='-k ...' for: {row.name}"
        name = re.sub(r"\[.*", "", row.caught_by).rpartition("::")[2]
        assert re.search(rf"def {name}\(", tests), row


def test_the_table_is_written_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "mutations.md"
    bugs = planned()
    path.write_text("| bug | put into | caught by |\n|---|---|---|\n| a bug that is gone | `x.py` | `test_x` |\n")
    threads = [
        threading.Thread(target=record, args=(bug.name, None if bug is bugs[2] else f"test_{n}", path))
        for n, bug in enumerate(bugs[:5])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    caught = ["test_0", "test_1", NOT_CAUGHT, "test_3", "test_4", *[NOT_RUN] * (len(bugs) - 5)]
    assert read_table(path) == [Planted(bug.name, bug.place, by) for bug, by in zip(bugs, caught, strict=True)]
    assert path.read_text().endswith(f"\n4 of {len(bugs)} bugs were caught.\n")


def test_the_benchmark_tables_are_those_of_the_run() -> None:
    run = msgspec.json.decode(DOCS_RUN.read_bytes(), type=Run)
    assert run.size == "full"
    assert [outcome.name for outcome in run.outcomes] == list(NAMES)
    assert DOCS_TABLES.read_text() == report(run, markdown=True) + "\n"
