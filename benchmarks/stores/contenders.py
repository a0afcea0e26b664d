"""What every store of the field is asked to do, and the three that are always there: Pixelmemory, Pixeltable, SQLite.

A :class:`Session` times one operation of one contender and checks what it returned. The other contenders are in
``peers``; each runs in a process of its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import data
from benchmarks.place import BATCH_ROWS, Place
from benchmarks.report import check
from benchmarks.timing import each_seconds

__all__ = ["ALWAYS", "Contender", "NotOfferedError", "Session", "Timed"]

LIMIT = 10
GROUP = "g7"


class NotOfferedError(Exception):
    """A contender does not do this."""


class Contender(Protocol):
    """Rows are known by their number in the corpus. What a call wrote is on disk by the contender's own promise."""

    version: str

    def add(self, first: int, last: int) -> None: ...

    def settle(self) -> None:
        """Wait until everything is searchable, as fast as it gets."""

    def search(self, vector: NDArray[np.float32], group: str | None) -> list[int]: ...

    def get(self, row: int) -> str:
        """The row's content, from when it is visible."""

    def update(self, row: int, content: str) -> None: ...

    def delete(self, row: int) -> None: ...

    def count(self) -> int: ...

    def close(self) -> None: ...


class Timed(msgspec.Struct):
    """Seconds of each call of one operation."""

    seconds: list[float]
    #: of searches: the mean share of the nearest rows that was found
    recall: float | None = None


class Session:
    """One contender with ``rows`` rows; ``calls`` more are there to be added one by one."""

    OPERATIONS = ("bulk", "search", "filtered", "get", "add_one", "add_visible", "update", "delete")

    def __init__(self, make: Callable[[Path, data.Corpus], Contender], folder: Path, rows: int, calls: int) -> None:
        #: one row more for a warm-up; half of the others are added and looked for
        self._rows, self._calls = rows, calls
        self._corpus = data.corpus(rows + 2 * calls)
        self._next_row = rows
        self._turn = 0
        self._deleted = 0
        self._contender = make(folder, self._corpus)
        self.version = self._contender.version

    def run(self, operation: str, calls: int) -> Timed:
        """Do ``operation`` so many times and check what came back.

        Raises:
            NotOfferedError: the contender does not do it.
            WrongResultError: it did not do it right.
        """
        check(operation in self.OPERATIONS, f"no operation {operation}")
        timed: Timed = getattr(self, f"_{operation}")(calls)
        return timed

    def close(self) -> None:
        """Close the contender, once the rows were counted."""
        try:
            expected = self._next_row - self._deleted
            found = self._contender.count()
            check(found == expected, f"{expected} rows were written, and there are {found}")
        finally:
            self._contender.close()

    def _bulk(self, _calls: int) -> Timed:
        def run(index: int) -> None:
            if index < self._rows:
                self._contender.add(index, min(index + BATCH_ROWS, self._rows))
            else:
                self._contender.settle()

        return Timed(each_seconds(run, [*range(0, self._rows, BATCH_ROWS), self._rows]))

    def _searches(self, calls: int, group: str | None) -> Timed:
        found: dict[int, list[int]] = {}
        queries = self._corpus.queries
        turns = [(self._turn + i) % len(queries) for i in range(calls)]
        self._turn += calls

        def run(turn: int) -> None:
            found[turn] = self._contender.search(queries[turn], group)

        run(turns[0])  # the first pays for what is loaded late
        seconds = each_seconds(run, turns)
        present = np.arange(len(self._corpus.contents)) < self._rows
        if group is not None:
            present &= data.matches(self._corpus, "equality")
        shares = []
        for turn, rows in found.items():
            check(len(set(rows)) == min(LIMIT, int(present.sum())), f"{len(rows)} results")
            check(all(present[row] for row in rows), "a result that the filter excludes")
            shares.append(data.recall(data.exact(self._corpus, queries[turn], present), rows, LIMIT))
        return Timed(seconds, float(np.mean(shares)))

    def _search(self, calls: int) -> Timed:
        return self._searches(calls, None)

    def _filtered(self, calls: int) -> Timed:
        return self._searches(calls, GROUP)

    def _get(self, calls: int) -> Timed:
        rows = np.random.default_rng(1).integers(0, self._rows, calls).tolist()

        def run(row: int) -> None:
            check(self._contender.get(row) == self._corpus.contents[row], f"another content of row {row}")

        run(rows[0])
        return Timed(each_seconds(run, rows))

    def _add_one(self, calls: int) -> Timed:
        first = self._take(calls)
        return Timed(each_seconds(lambda row: self._contender.add(row, row + 1), range(first, first + calls)))

    def _add_visible(self, calls: int) -> Timed:
        def run(row: int) -> None:
            self._contender.add(row, row + 1)
            check(self._contender.get(row) == self._corpus.contents[row], f"another content of row {row}")

        first = self._take(calls)
        return Timed(each_seconds(run, range(first, first + calls)))

    def _take(self, calls: int) -> int:
        first, self._next_row = self._next_row, self._next_row + calls
        check(self._next_row <= len(self._corpus.contents), "more rows than there are")
        return first

    def _update(self, calls: int) -> Timed:
        def run(row: int) -> None:
            self._contender.update(row, self._corpus.contents[row] + "!")

        seconds = each_seconds(run, range(calls))
        last = calls - 1
        check(self._contender.get(last) == self._corpus.contents[last] + "!", "an update is not there")
        return Timed(seconds)

    def _delete(self, calls: int) -> Timed:
        seconds = each_seconds(self._contender.delete, range(calls))
        self._deleted += calls
        return Timed(seconds)


class PixelmemoryContender:
    """Ours, through the sync interface. A write returns when it is durable; ``get`` waits until it is visible."""

    def __init__(self, folder: Path, of: data.Corpus) -> None:
        import pixelmemory

        self.version = pixelmemory.__version__
        place = Place(folder, "")
        self._of = of
        self._ids: list[str] = []
        given = {"dimensions": data.DIMENSIONS}
        self._memory = pixelmemory.Memory(place.name("contender"), None, given, options=place.options())
        self._memory.__enter__()

    def add(self, first: int, last: int) -> None:
        if last - first == 1:
            entry = self._of.entries(first, last)[0]
            self._ids.append(self._memory.add_entry(**entry))
        else:
            self._ids += self._memory.add_entries(self._of.entries(first, last))

    def settle(self) -> None:
        self._memory.flush()

    def search(self, vector: NDArray[np.float32], group: str | None) -> list[int]:
        wanted = None if group is None else {"group": group}
        found = self._memory.search(vector=vector, limit=LIMIT, metadata_filter=wanted)
        return [each["metadata"]["n"] for each in found]

    def get(self, row: int) -> str:
        found = self._memory.get_memory(self._ids[row])
        return "" if found is None else found["content"]

    def update(self, row: int, content: str) -> None:
        self._memory.update_memory(self._ids[row], content=content, embedding=self._of.vectors[row])

    def delete(self, row: int) -> None:
        self._memory.delete_memory(self._ids[row])

    def count(self) -> int:
        return self._memory.count()

    def close(self) -> None:
        self._memory.close()


class PixeltableContender:
    """Pixeltable without a log between."""

    def __init__(self, folder: Path, of: data.Corpus) -> None:
        del folder
        import importlib.metadata

        from benchmarks.stores.pixeltable_direct import DirectTable

        self.version = importlib.metadata.version("pixeltable")
        self._table = DirectTable(of)
        self.count, self.get, self.update = self._table.count, self._table.get, self._table.update
        self.add, self.delete, self.close = self._table.insert, self._table.delete, self._table.drop

    def settle(self) -> None:
        """An insert returns when it is searchable."""

    def search(self, vector: NDArray[np.float32], group: str | None) -> list[int]:
        return self._table.search(vector, LIMIT, group)


class SqliteContender:
    """Plain SQLite: durable rows, no vectors."""

    def __init__(self, folder: Path, of: data.Corpus) -> None:
        self.version = sqlite3.sqlite_version
        self._of = of
        self._database = sqlite3.connect(folder / "sqlite", isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "CREATE TABLE memories (id INTEGER PRIMARY KEY, content TEXT, metadata TEXT, vector BLOB)",
        ):
            self._database.execute(statement)

    def add(self, first: int, last: int) -> None:
        rows = [self._row(number) for number in range(first, last)]
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO memories VALUES (?, ?, ?, ?)", rows)
        self._database.execute("COMMIT")

    def _row(self, number: int) -> Sequence[Any]:
        metadata = msgspec.json.encode(self._of.metadata[number])
        return number, self._of.contents[number], metadata, self._of.vectors[number].tobytes()

    def settle(self) -> None:
        """A commit is visible."""

    def search(self, vector: NDArray[np.float32], group: str | None) -> list[int]:  # noqa: ARG002 - the protocol's
        raise NotOfferedError

    def get(self, row: int) -> str:
        found = self._database.execute("SELECT content FROM memories WHERE id = ?", (row,)).fetchone()
        return str(found[0])

    def update(self, row: int, content: str) -> None:
        self._database.execute("UPDATE memories SET content = ? WHERE id = ?", (content, row))

    def delete(self, row: int) -> None:
        self._database.execute("DELETE FROM memories WHERE id = ?", (row,))

    def count(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM memories").fetchone()[0])

    def close(self) -> None:
        self._database.close()


ALWAYS: dict[str, Callable[[Path, data.Corpus], Contender]] = {
    "pixelmemory": PixelmemoryContender,
    "pixeltable": PixeltableContender,
    "sqlite": SqliteContender,
}
