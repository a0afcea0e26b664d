"""The projection in Pixeltable: :class:`pixelmemory.projection.contract.Host` of its tables, read and written by SQL.

Where Pixeltable's internals are not as expected, or by option, the same through its public API alone.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import msgspec
import numpy as np
import pixeltable as pxt
from pixeltable import exceptions as excs

from pixelmemory.embedding.window import Window
from pixelmemory.errors import ProjectionUnavailableError, UnavailableCause
from pixelmemory.memory.identity import memory_key
from pixelmemory.memory.schema import Schema
from pixelmemory.memory.search import Search
from pixelmemory.options import Layout, Options
from pixelmemory.projection import embed
from pixelmemory.projection.batches import EmbedTexts
from pixelmemory.projection.changes import Change
from pixelmemory.projection.contract import Capability, DeadLetter, ProjectionState, Vectors
from pixelmemory.projection.embed import VectorSource
from pixelmemory.projection.pixeltable import internals, startup
from pixelmemory.projection.pixeltable.claim import Claim
from pixelmemory.projection.pixeltable.public_api import PublicReads
from pixelmemory.projection.pixeltable.purge import NEEDS_SQL, purge, scrub
from pixelmemory.projection.pixeltable.tables import (
    OWN_TABLE_ROWS_MIN,
    SHARED_TABLE,
    TableSet,
    find_folder,
    folder_name,
)
from pixelmemory.projection.pixeltable.writer import TableWriter
from pixelmemory.projection.rows import Row, ranked
from pixelmemory.projection.sql.failures import first_line
from pixelmemory.projection.sql.hnsw import IndexKeeper
from pixelmemory.projection.sql.physical import namespace_key
from pixelmemory.projection.sql.reads import SqlReads

__all__ = ["PixeltableHost", "TableReads"]

_logger = logging.getLogger("pixelmemory.projection")
T = TypeVar("T")

#: rows from which a namespace has a table of its own, where ``graph_rows_min`` is not less
SHARED_ROWS_MAX = 10_000


class TableReads(Protocol):
    """How the tables are read; called on worker threads, several at a time. ``table`` is a table of the projection."""

    def search(self, table: str, search: Search) -> list[Row]:
        """The rows of ``table`` that satisfy ``search``, best first."""

    def get(self, table: str, namespace: str, memory_id: str) -> Row | None:
        """One memory, or None."""

    def existing(self, table: str, namespace: str, keys: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Which of ``keys`` are live rows."""

    def occupied(self, table: str, namespaces: Collection[str]) -> set[str]:
        """Which of ``namespaces``, all of them of ``table``, hold a row."""

    def count(self, table: str, search: Search) -> int:
        """How many rows of ``table`` satisfy the conditions of ``search``."""

    def scores(self, vectors: Sequence[np.ndarray], query: np.ndarray) -> list[float | None]:
        """As :meth:`pixelmemory.projection.contract.Host.scores`."""

    def long_texts(self, table: str, namespace: str, window: Window) -> Generator[list[Row]]:
        """As :meth:`pixelmemory.projection.contract.Host.long_texts`."""


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Tell what it means that a table or column of the projection is gone."""
    try:
        yield
    except (excs.NotFoundError, AttributeError) as error:
        raise ProjectionUnavailableError(
            f"a table or column of the projection is gone ({first_line(error)}); put it back, or rebuild the "
            "projection",
            UnavailableCause.TABLE_GONE,
        ) from error


class PixeltableHost:
    """The tables of one store in Pixeltable. Made by :meth:`open`, on a worker thread.

    Attributes:
        tables: which tables there are.
        reads: how they are read.
        indexes: the upkeep of their HNSW indexes; None where Pixeltable keeps them itself.
    """

    tables: TableSet
    reads: TableReads
    indexes: IndexKeeper | None
    _writer: TableWriter

    def __init__(self, claim: Claim, tables: TableSet, source: VectorSource, options: Options) -> None:
        self._claim = claim
        self.tables = tables
        self._source = source
        self._options = options
        self.indexes = None
        #: rows of the namespaces in the shared table, counted once and then kept up; the writer thread's
        self._shared_rows: Counter[str] = Counter()

    @classmethod
    @internals.thread_released()
    def open(
        cls,
        store_name: str,
        tables_id: uuid.UUID,
        state: ProjectionState,
        *,
        schema: Schema | None,
        embed_texts: EmbedTexts | None,
        options: Options,
    ) -> PixeltableHost:
        """Claim the tables of a store; after :func:`pixelmemory.projection.pixeltable.startup.start_pixeltable`.

        Args:
            store_name: part of the name of the tables' folder.
            tables_id: the rest of it: the store's id, or what a copy of a store has in its place.
            state: what the tables have to be made from.
            schema: which metadata has typed columns.
            embed_texts: the store's model behind its cache, or None.
            options: limits.

        Raises:
            StoreLockedError: a copy of this store uses them.
        """
        folder = folder_name(store_name, tables_id)
        claim = Claim(folder)
        try:
            tables = TableSet(folder, state, schema, direct_sql=options.direct_sql)
            found = find_folder(store_name, tables_id, state.store_id)
            if found is not None and found != folder:
                with contextlib.closing(Claim(found)):  # who still has it open under its other name keeps it
                    tables.adopt(found)
        except BaseException:
            claim.release()
            raise
        return cls(claim, tables, VectorSource(embed_texts), options)

    @property
    def name(self) -> str:
        """The folder in Pixeltable."""
        return self.tables.path

    @property
    def lacks(self) -> Mapping[Capability, str]:
        """Without SQL nothing can be purged."""
        return {} if self.tables.direct_sql else {Capability.PURGE: NEEDS_SQL}

    def on_thread(self) -> contextlib.AbstractContextManager[None]:
        """Pixeltable keeps an event loop for each thread."""
        return internals.thread_released()

    # -- the projection as a whole

    def stored_state(self) -> tuple[ProjectionState, int] | None:
        return self.tables.stored_state()

    def reset(self) -> None:
        self.tables.drop()
        self.tables.initialize()

    def load(self) -> None:
        options = self._options
        self.tables.load()
        self.reads = PublicReads(self.tables)
        if self.tables.direct_sql:
            backlog = max(2 * options.batch_events_max, 5000)
            self.indexes = IndexKeeper(self.tables, rows_min=options.graph_rows_min, backlog_events=backlog)
            self.indexes.start()
            self.reads = SqlReads(self.tables, options, self.indexes.has_index)
        self._writer = TableWriter(self.tables, self._source)
        for namespace in self.tables.unfinished_moves():
            self._writer.finish_move(namespace)
        embed.register(self.tables.state.store_id, self._source)

    def revive(self, check: Callable[[], None]) -> None:
        startup.revive_server(self._options.database_timeout_seconds, check)
        self._claim.renew()

    def close(self, *, keep_claim: bool) -> None:
        if self.indexes is not None:
            self.indexes.stop()
        embed.unregister(self.tables.state.store_id, self._source)
        if not keep_claim:
            self._claim.release()

    # -- errors

    def is_infrastructure_error(self, error: BaseException) -> bool:
        return startup.is_infrastructure_error(error)

    def is_missing_table(self, error: BaseException) -> bool:
        return startup.is_missing_table(error)

    # -- writing

    def prepare(self, changes: Sequence[Change]) -> None:
        self._writer.prepare(changes)

    def apply(
        self,
        changes: Sequence[Change],
        vectors: Vectors,
        *,
        checkpoint_lsn: int | None,
        replace: bool = False,
        dead_letters: Sequence[DeadLetter] = (),
        revived_lsns: Sequence[int] = (),
    ) -> list[DeadLetter]:
        return self._writer.apply(
            changes,
            vectors,
            checkpoint_lsn=checkpoint_lsn,
            replace=replace,
            dead_letters=dead_letters,
            revived_lsns=revived_lsns,
        )

    def dead_letters(self) -> list[DeadLetter]:
        return self.tables.dead_letters()

    def damage(self, namespaces: Collection[str]) -> str | None:
        return self.tables.damage(self._names(namespaces))

    def create(self, namespace: str) -> None:
        if not self.knows(namespace):
            self.tables.create({namespace: OWN_TABLE_ROWS_MIN})
        elif not self.has_table(namespace):
            self._writer.move_out(namespace)

    def _names(self, namespaces: Collection[str]) -> set[str]:
        names = {self.tables.name_of(namespace) for namespace in namespaces}
        return {name for name in names if name is not None}

    # -- reading

    def knows(self, namespace: str) -> bool:
        return self.tables.name_of(namespace) is not None

    def namespaces(self) -> list[str]:
        return self.tables.namespaces()

    def _read(self, namespaces: Iterable[str], read: Callable[[str, tuple[str, ...]], T]) -> list[T]:
        """What ``read`` finds in each table, of ``namespaces`` those in it: once more where one has moved meanwhile."""
        while True:
            by_table: dict[str, list[str]] = defaultdict(list)
            for namespace in namespaces:
                if (table := self.tables.name_of(namespace)) is not None:
                    by_table[table].append(namespace)
            with _told():
                found = [read(table, tuple(held)) for table, held in by_table.items()]
            if all(self.tables.name_of(each) == table for table, held in by_table.items() for each in held):
                return found

    def _search(self, search: Search, read: Callable[[str, Search], T]) -> list[T]:
        """What ``read`` finds of ``search`` in each table."""

        def read_table(table: str, held: tuple[str, ...]) -> T:
            if self.tables.is_shared(table):
                return read(table, msgspec.structs.replace(search, namespaces=held))
            if search.among is None and not search.without:
                return read(table, msgspec.structs.replace(search, namespaces=held))
            among = None if search.among is None else frozenset(key for key in search.among if key[0] in held)
            without = frozenset(key for key in search.without if key[0] in held)
            return read(table, msgspec.structs.replace(search, namespaces=held, among=among, without=without))

        return self._read(search.namespaces, read_table)

    def get(self, namespace: str, memory_id: str) -> Row | None:
        found = self._read((namespace,), lambda table, _: self.reads.get(table, namespace, memory_id))
        return found[0] if found else None

    def existing(self, namespace: str, memory_ids: Collection[str]) -> set[str]:
        keys: dict[uuid.UUID, str] = {memory_key(memory_id): memory_id for memory_id in memory_ids}
        found = self._read((namespace,), lambda table, _: self.reads.existing(table, namespace, list(keys)))
        return {keys[key] for each in found for key in each}

    def occupied(self, namespaces: Collection[str]) -> set[str]:
        return set[str]().union(*self._read(namespaces, self.reads.occupied))

    def count(self, search: Search) -> int:
        return sum(self._search(search, self.reads.count))

    def scores(self, vectors: Sequence[np.ndarray], query: np.ndarray) -> list[float | None]:
        return self.reads.scores(vectors, query) if vectors else []

    def search(self, search: Search) -> list[Row]:
        if search.limit == 0:
            return []
        first = msgspec.structs.replace(search, offset=0, limit=search.offset + search.limit)
        tables = {self.tables.name_of(namespace) for namespace in search.namespaces}
        if len(tables) == 1:
            found = self._search(search, self.reads.search)
            if len(found) < 2:  # else one of the namespaces has moved meanwhile
                return found[0] if found else []
        return ranked([row for rows in self._search(first, self.reads.search) for row in rows], search)

    def long_texts(self, namespace: str, window: Window) -> Generator[list[Row]]:
        while (table := self.tables.name_of(namespace)) is not None:
            is_empty = True
            with _told():
                for page in self.reads.long_texts(table, namespace, window):
                    is_empty = False
                    yield page
            if not is_empty or self.tables.name_of(namespace) == table:
                return

    # -- upkeep

    def before_batch(self, changes: Sequence[Change], lag_events: int) -> None:
        if self.indexes is not None:
            self.indexes.before_batch(self._names({change.namespace for change in changes}), lag_events)

    def after_batch(self, changes: Collection[Change], lag_events: int) -> None:
        if self.indexes is None:
            return
        if self.tables.layout is Layout.AUTO:
            self._move_large(changes)
        inserted: Counter[str] = Counter()
        for change in changes:
            name = self.tables.name_of(change.namespace)
            if name is not None:
                inserted[name] += change.insert - change.delete
        self.indexes.after_batch(inserted, lag_events)

    def _move_large(self, changes: Collection[Change]) -> None:
        """Give the namespaces that have outgrown the shared table tables of their own."""
        inserted: Counter[str] = Counter()
        for change in changes:
            name = self.tables.name_of(change.namespace)
            if name is not None and self.tables.is_shared(name):
                inserted[change.namespace] += change.insert - change.delete
        if not inserted:
            return
        uncounted = {namespace_key(each): each for each in inserted if each not in self._shared_rows}
        self._shared_rows.update(inserted)
        shared = self.tables.physical(SHARED_TABLE)
        for key, rows in internals.count_by_key(shared, "namespace_key", list(uncounted)).items():
            self._shared_rows[uncounted[key]] = rows
        for namespace, rows in inserted.items():
            rows_max = min(self._options.graph_rows_min, SHARED_ROWS_MAX)
            if self._shared_rows[namespace] >= max(1, rows_max) or rows >= OWN_TABLE_ROWS_MIN:
                _logger.info("namespace %r moves to a table of its own", namespace)
                self._writer.move_out(namespace)
                del self._shared_rows[namespace]

    # -- what a host may lack

    def purge(self, namespace: str, memory_ids: Collection[str] | None, up_to_lsn: int) -> None:
        purge(self.tables, namespace, memory_ids, up_to_lsn)
        scrub(self.tables, namespace)

    def has_table(self, namespace: str) -> bool:
        name = self.tables.name_of(namespace)
        return name is not None and (self.tables.layout is Layout.SHARED or not self.tables.is_shared(name))

    def table(self, namespace: str) -> pxt.Table:
        name = self.tables.name_of(namespace)
        assert name is not None
        return pxt.get_table(f"{self.tables.path}/{name}")
