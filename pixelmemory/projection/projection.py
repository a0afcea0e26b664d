"""A store's projection as one thing: opened against its log, kept level, read, rebuilt, closed."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import wait

import pixeltable as pxt

from pixelmemory.errors import (
    CheckpointAheadError,
    PixelmemoryError,
    ProjectionUnavailableError,
)
from pixelmemory.log.file.file_log import Log
from pixelmemory.memory.schema import Schema
from pixelmemory.options import Options
from pixelmemory.projection import embed
from pixelmemory.projection.batches import EmbedTexts, TruncatedTexts
from pixelmemory.projection.contract import ReadBackend
from pixelmemory.projection.embed import VectorSource
from pixelmemory.projection.mismatch import find_mismatch
from pixelmemory.projection.pixeltable import internals
from pixelmemory.projection.pixeltable.claim import Claim
from pixelmemory.projection.pixeltable.public_api import PublicReads
from pixelmemory.projection.pixeltable.purge import purge, require_sql, scrub
from pixelmemory.projection.pixeltable.startup import first_line, revive_server
from pixelmemory.projection.pixeltable.tables import ProjectionState, TableSet, find_folder, folder_name
from pixelmemory.projection.pixeltable.writer import DeadLetter, TableWriter
from pixelmemory.projection.projector import Projector
from pixelmemory.projection.sql.hnsw import GraphKeeper
from pixelmemory.projection.sql.reads import SqlReads
from pixelmemory.store.manifest import Erasure

__all__ = ["Projection"]

_logger = logging.getLogger("pixelmemory.projection")


class Projection:
    """The tables of one store, the projector that writes them and the backend that reads them.

    Made by :meth:`open` on a worker thread, after :func:`pixelmemory.projection.pixeltable.startup.start_pixeltable`.

    Attributes:
        tables: which tables there are.
        projector: not started yet; ``projector.start()`` is the engine's.
        reads: how they are read.
        rebuilding: whether the projection was empty and the log was not.
    """

    tables: TableSet
    projector: Projector
    reads: ReadBackend
    rebuilding: bool
    #: whether another stands in its place, which has no tables
    is_missing = False
    _wait_timeout_seconds: float
    _database_timeout_seconds: float

    def __init__(self, claim: Claim, store_id: str, source: VectorSource, graphs: GraphKeeper | None) -> None:
        self._claim = claim
        self._store_id = store_id
        self._source = source
        self._graphs = graphs

    @classmethod
    @internals.thread_released()
    def open(
        cls,
        name: str,
        tables_id: uuid.UUID,
        state: ProjectionState,
        *,
        log: Log,
        schema: Schema | None,
        embed_texts: EmbedTexts | None,
        truncated_texts: TruncatedTexts | None,
        options: Options,
        rebuild: bool,
        rewritten_lsn: int,
        on_watermark: Callable[[int], None],
        recorded_fields: Mapping[str, str] | None = None,
    ) -> Projection:
        """Open, or make anew, the projection of the store ``name``.

        Args:
            tables_id: names the folder of the tables: the store's id, or what a copy of a store has in its place.
            state: what it has to be made from.
            embed_texts: the store's model behind its cache, or None.
            truncated_texts: which texts the model cuts, or None.
            rebuild: delete what there is first.
            rewritten_lsn: events up to it were taken out of the log; an older projection is rebuilt.
            recorded_fields: the schema's fields that the tables were made with, as the manifest has them, if it does.

        Raises:
            StoreLockedError: a copy of this store uses it.
            ProjectionMismatchError: it was made with another layout or schema, and ``rebuild`` is not given.
            CheckpointAheadError: it is ahead of the log.
        """
        folder = folder_name(name, tables_id)
        claim = Claim(folder)
        try:
            tables = TableSet(folder, state, schema, direct_sql=options.direct_sql)
            found = find_folder(name, tables_id, state.store_id)
            if found is not None and found != folder:
                with contextlib.closing(Claim(found)):  # who still has it open under its other name keeps it
                    tables.adopt(found)
            checkpoint = _reconcile(tables, state, log, rewritten_lsn, rebuild=rebuild, recorded=recorded_fields)
            tables.load()
            return cls._assemble(claim, tables, checkpoint, log, embed_texts, truncated_texts, options, on_watermark)
        except BaseException:
            claim.release()
            raise

    @classmethod
    def _assemble(
        cls,
        claim: Claim,
        tables: TableSet,
        checkpoint_lsn: int,
        log: Log,
        embed_texts: EmbedTexts | None,
        truncated_texts: TruncatedTexts | None,
        options: Options,
        on_watermark: Callable[[int], None],
    ) -> Projection:
        source = VectorSource(embed_texts)
        graphs: GraphKeeper | None = None
        if tables.direct_sql:
            backlog = max(2 * options.batch_events_max, 5000)
            graphs = GraphKeeper(tables, rows_min=options.graph_rows_min, backlog_events=backlog)
            graphs.start()
        self = cls(claim, tables.state.store_id, source, graphs)
        self.tables = tables
        self.rebuilding = checkpoint_lsn == 0 and log.durable_lsn > 0
        self.reads = PublicReads(tables)
        if tables.direct_sql:
            has_graph = graphs.has_graph if graphs is not None else _no_graph
            self.reads = SqlReads(tables, options, has_graph)
        dead = tables.table("dead_letters")
        columns = {name: getattr(dead, name) for name in DeadLetter.__struct_fields__}
        self._wait_timeout_seconds = options.wait_timeout_seconds
        self._database_timeout_seconds = options.database_timeout_seconds
        self.projector = Projector(
            log,
            tables,
            TableWriter(tables, source),
            graphs=graphs,
            checkpoint_lsn=checkpoint_lsn,
            dead_letters=[DeadLetter(**row) for row in dead.select(**columns).collect()],
            embed=embed_texts,
            truncated=truncated_texts,
            dimensions=tables.state.dimensions,
            options=options,
            on_watermark=on_watermark,
            revive=self._revive,
        )
        embed.register(tables.state.store_id, source)  # last: nothing after it fails and leaves it there
        return self

    def _revive(self) -> None:
        """Bring the database back, and the claim on it."""
        revive_server(self._database_timeout_seconds, self.projector.check_running)
        self._claim.renew()

    def namespace_table(self, namespace: str) -> pxt.Table:
        """The Pixeltable table of ``namespace``, made if it is not there; blocking, for a worker thread.

        Raises:
            ProjectionUnavailableError: the projector did not come to making it within ``wait_timeout_seconds``.
        """
        name = self.tables.name_of(namespace)
        if name is None:
            made = self.projector.request(lambda: self.tables.create(namespace))
            if not wait([made], self._wait_timeout_seconds).done:
                reason = self.projector.blocked or "the projector is busy"
                raise ProjectionUnavailableError(f"the table of {namespace!r} is not made yet: {reason}")
            name = made.result()
        return pxt.get_table(f"{self.tables.path}/{name}")

    def check_erasable(self) -> None:
        """Raise ProjectionError if the tables are not reached by SQL, which :meth:`erase` needs."""
        require_sql(self.tables)

    def erase(self, erasure: Erasure) -> None:
        """Take what is left of deleted memories out of the tables, and out of what the database keeps of their past.

        Blocking; with the projector at rest, or on its thread (:meth:`Projector.request`).

        Raises:
            ProjectionError: something of it could not be removed; doing it again goes on with it.
        """
        try:
            self.projector.forget_dead_letters(erasure.namespace, erasure.memory_ids, erasure.up_to_lsn)
        except PixelmemoryError:
            raise
        except Exception as error:
            raise ProjectionUnavailableError(f"dead letters could not be erased: {first_line(error)}") from error
        purge(self.tables, erasure.namespace, erasure.memory_ids, erasure.up_to_lsn)
        scrub(self.tables, erasure.namespace)

    def close(self) -> None:
        """Stop the projector after the batch in hand and let go of the database. Blocking; idempotent."""
        stopped = self.projector.stop()
        if self._graphs is not None:
            self._graphs.stop()
        self.reads.close()
        embed.unregister(self._store_id, self._source)
        if stopped:
            self._claim.release()
        else:  # the claim on the projection is kept, so that nobody else writes beside it
            _logger.critical("the projector is stuck in the database; its tables stay claimed by this process")


def _no_graph(_table: str) -> bool:
    return False


def _reconcile(
    tables: TableSet,
    state: ProjectionState,
    log: Log,
    rewritten_lsn: int,
    *,
    rebuild: bool,
    recorded: Mapping[str, str] | None,
) -> int:
    """Make the projection fit the store, and return its checkpoint."""
    stored = tables.stored_state()
    if stored is not None and not rebuild:
        found, checkpoint_lsn = stored
        if found == state:
            if checkpoint_lsn > log.durable_lsn:
                raise CheckpointAheadError(checkpoint_lsn, log.durable_lsn)
            if checkpoint_lsn == 0 or checkpoint_lsn >= rewritten_lsn:
                return checkpoint_lsn
            _logger.warning("the projection %s is older than what was taken out of the log: rebuilding", tables.path)
        elif found.store_id != state.store_id:
            _logger.warning("the projection %s belongs to another store: it is rebuilt from the log", tables.path)
        elif found.format == state.format and (mismatch := find_mismatch(found, state, recorded, tables.schema)):
            raise mismatch
        # else an earlier format or, as the manifest has agreed to it, another model
    tables.drop()
    tables.initialize()
    return 0
