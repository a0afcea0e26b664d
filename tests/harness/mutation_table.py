"""The mutation gate's table in the docs: one row a bug, in their order, which ``make mutations`` writes as it goes."""

from __future__ import annotations

import fcntl
import importlib
import re
from pathlib import Path
from typing import NamedTuple

from tests.harness.imports import ROOT

__all__ = ["NOT_CAUGHT", "NOT_RUN", "TABLE", "Planted", "planned", "read_table", "record"]

TABLE = ROOT / "docs/generated/mutations.md"
HEAD = "| bug | put into | caught by |\n|---|---|---|\n"
NOT_RUN, NOT_CAUGHT = "not run yet", "**not caught**"


class Planted(NamedTuple):
    """One bug of the gate, and what came of it."""

    name: str
    #: the file it is put into, within the package
    place: str
    #: the test that failed, :data:`NOT_RUN` or :data:`NOT_CAUGHT`
    caught_by: str = NOT_RUN


def planned() -> list[Planted]:
    """Every bug that the gate has now, in the order of its files and of their tables."""
    found = []
    for path in sorted((ROOT / "tests/faults").glob("test_*_mutations.py")):
        module = importlib.import_module(f"tests.faults.{path.stem}")
        found += [Planted(each.name, f"{each.module}.py") for each in module.MUTATIONS]
    return found


def read_table(path: Path = TABLE) -> list[Planted]:
    """The rows that are written down."""
    text = path.read_text() if path.exists() else ""
    rows = re.findall(r"^\| (.+) \| `(.+)` \| (.+) \|$", text, re.MULTILINE)
    return [Planted(name, place, caught_by.strip("`")) for name, place, caught_by in rows]


def record(name: str, caught_by: str | None, path: Path = TABLE) -> None:
    """Write down what came of one bug: its row is replaced, rows of bugs that are gone leave, new ones are added.

    Several processes may do so at once.
    """
    with path.parent.joinpath(".mutations.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = {row.name: row.caught_by for row in read_table(path)} | {name: caught_by or NOT_CAUGHT}
        rows = [each._replace(caught_by=known.get(each.name, NOT_RUN)) for each in planned()]
        caught = sum(row.caught_by not in (NOT_RUN, NOT_CAUGHT) for row in rows)
        new = path.with_suffix(".new")
        new.write_text(f"{HEAD}{''.join(map(_line, rows))}\n{caught} of {len(rows)} bugs were caught.\n")
        new.replace(path)


def _line(row: Planted) -> str:
    caught_by = row.caught_by if row.caught_by in (NOT_RUN, NOT_CAUGHT) else f"`{row.caught_by}`"
    return f"| {row.name} | `{row.place}` | {caught_by} |\n"
