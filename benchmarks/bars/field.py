"""The field: the same rows and the same operations in every store, each in a process of its own.

The operations of all stores take turns, so that a busy moment of the machine meets all of them.
"""

from __future__ import annotations

from contextlib import ExitStack

import msgspec

from benchmarks.place import Place
from benchmarks.report import Bar, FieldRow, WrongResultError
from benchmarks.stores.contenders import Session, Timed
from benchmarks.stores.peer_process import PeerProcess, installed
from benchmarks.stores.peers import NAMES
from benchmarks.timing import p50, say

#: rows, calls behind each median
SIZES = {"tiny": (300, 5), "small": (2_000, 30), "full": (10_000, 100)}


class Field(msgspec.Struct):
    contenders: list[FieldRow]

    def bars(self) -> list[Bar]:
        """None: it is a table of its own."""
        return []


def measure(place: Place, names: tuple[str, ...] = NAMES) -> Field:
    rows, calls = place.sized(SIZES)
    present = [name for name in names if installed(name)]
    answers: dict[str, dict[str, Timed]] = {name: {} for name in present}
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        running = {name: stack.enter_context(PeerProcess(place, name, rows, calls)) for name in present}
        versions = {name: process.version for name, process in running.items()}
        for operation in Session.OPERATIONS:
            say(f"{operation}: {', '.join(present)}")
            for name in [name for name in present if name not in failed]:
                try:
                    answers[name][operation] = running[name].run(operation, calls)
                except WrongResultError as error:
                    failed[name] = str(error)
        for name, process in running.items():
            try:
                process.close()
            except WrongResultError as error:
                failed[name] = str(error)
    contenders = [
        FieldRow(name=name, version=versions[name], rows=rows, why=failed[name])
        if name in failed
        else _row(name, versions[name], rows, calls, answers[name])
        for name in present
    ]
    missing = [
        FieldRow(name=name, version="", rows=0, why="not installed (the extra bench brings it)")
        for name in names
        if name not in present
    ]
    return Field(contenders=contenders + missing)


def _row(name: str, version: str, rows: int, calls: int, answers: dict[str, Timed]) -> FieldRow:
    def middle(operation: str) -> float | None:
        seconds = answers[operation].seconds
        return p50(seconds) * 1000 if seconds else None

    return FieldRow(
        name=name,
        version=version,
        rows=rows,
        add_one_ms=middle("add_one"),
        add_visible_ms=middle("add_visible"),
        bulk_rows_per_second=rows / sum(answers["bulk"].seconds),
        search_ms=middle("search"),
        recall=answers["search"].recall,
        filtered_ms=middle("filtered"),
        get_ms=middle("get"),
        update_ms=middle("update"),
        delete_ms=middle("delete"),
        calls=calls,
    )


def run(place: Place) -> Field:
    return measure(place)
