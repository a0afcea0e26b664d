"""A store's projection as one thing: opened against its log, kept level, read, rebuilt, closed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from typing import Any

import msgspec

from pixelmemory.errors import (
    CheckpointAheadError,
    PixelmemoryError,
    ProjectionError,
    ProjectionUnavailableError,
    UnavailableCause,
)
from pixelmemory.log.contract import EventLog, StoredEvent
from pixelmemory.memory.erasure import Erasure
from pixelmemory.memory.schema import Schema
from pixelmemory.options import Options
from pixelmemory.projection.batches import EmbedTexts, TruncatedTexts
from pixelmemory.projection.changes import Change, fold
from pixelmemory.projection.contract import Capability, Host, ProjectionState
from pixelmemory.projection.mismatch import find_mismatch, fits
from pixelmemory.projection.projector import Projector
from pixelmemory.projection.query import Query
from pixelmemory.projection.sql.failures import cause_of, first_line

__all__ = ["Projection"]

_logger = logging.getLogger("pixelmemory.projection")


class Projection:
    """The tables of one store, the projector that writes them and the queries that read them.

    Made by :meth:`open` on a worker thread.

    Attributes:
        host: where the tables are.
        projector: not started yet; ``projector.start()`` is the engine's.
        query: reads.
        rebuilding: whether the projection was empty and the log was not.
    """

    #: whether another stands in its place, which has no tables
    is_missing = False

    def __init__(
        self, host: Host, projector: Projector, options: Options, embed_ahead: EmbedTexts | None, *, rebuilding: bool
    ) -> None:
        self.host = host
        self.projector = projector
        self.query = Query(host, embed_ahead)
        self.rebuilding = rebuilding
        self._wait_timeout_seconds = options.wait_timeout_seconds

    @classmethod
    def open(
        cls,
        host: Host,
        state: ProjectionState,
        *,
        log: EventLog,
        schema: Schema | None,
        embed_texts: EmbedTexts | None,
        embed_ahead: EmbedTexts | None,
        truncated_texts: TruncatedTexts | None,
        options: Options,
        rebuild: bool,
        rewritten_lsn: int,
        on_watermark: Callable[[int], None],
        recorded_fields: Mapping[str, str] | None = None,
    ) -> Projection:
        """Open, or rebuild, the projection in ``host``, which is closed again where that fails.

        Args:
            state: what it has to be made from.
            embed_texts: the store's model behind its cache, or None.
            embed_ahead: the same, for reads of what is not applied yet.
            truncated_texts: which texts the model cuts, or None.
            rebuild: delete what there is first.
            rewritten_lsn: events up to it were removed from the log; an older projection is rebuilt.
            recorded_fields: the schema's fields that the tables were made with, as the manifest has them, if it does.

        Raises:
            ProjectionMismatchError: it was made with another layout or schema, and ``rebuild`` is not given.
            CheckpointAheadError: it is ahead of the log.
        """
        try:
            with host.on_thread():
                checkpoint_lsn = _reconcile(
                    host, state, log, rewritten_lsn, rebuild=rebuild, recorded=recorded_fields, schema=schema
                )
                host.load()
                dead_letters = host.dead_letters()
            projector = Projector(
                log,
                host,
                checkpoint_lsn=checkpoint_lsn,
                dead_letters=dead_letters,
                embed=embed_texts,
                truncated=truncated_texts,
                dimensions=state.dimensions,
                options=options,
                on_watermark=on_watermark,
            )
        except BaseException:
            host.close(keep_claim=False)
            raise
        return cls(host, projector, options, embed_ahead, rebuilding=checkpoint_lsn == 0 and log.durable_lsn > 0)

    def changes(self, events: Sequence[StoredEvent]) -> list[Change]:
        """What ``events``, which are not applied yet, will do to the tables; without those of memories with a dead
        letter, behind which they will wait."""
        return [change for key, change in fold(events).items() if not self.projector.is_dead(key)]

    def namespace_table(self, namespace: str) -> Any:
        """The host's own table of ``namespace``, made if it is not there; blocking, for a worker thread.

        Raises:
            ProjectionUnavailableError: the projector did not come to making it within ``wait_timeout_seconds``.
            ProjectionError: the host has no such tables.
        """
        self._require(Capability.TABLE)
        if not self.host.has_table(namespace):
            made = self.projector.request(lambda: self.host.create(namespace))
            if not wait([made], self._wait_timeout_seconds).done:
                reason = self.projector.blocked or "the projector is busy"
                raise ProjectionUnavailableError(
                    f"the table of {namespace!r} is not made yet: {reason}", UnavailableCause.NOT_BUILT
                )
            made.result()
        return self.host.table(namespace)

    def check_erasable(self) -> None:
        """Raise ProjectionError where the host cannot do what :meth:`erase` needs."""
        self._require(Capability.PURGE)

    def _require(self, capability: Capability) -> None:
        if (reason := self.host.lacks.get(capability)) is not None:
            raise ProjectionError(reason)

    def erase(self, erasure: Erasure) -> None:
        """Take what is left of deleted memories out of the tables, and out of what the database keeps of their past.

        Blocking; with the projector at rest, or on its thread (:meth:`Projector.request`).

        Raises:
            ProjectionError: something of it could not be removed; doing it again goes on with it.
        """
        self.check_erasable()
        try:
            self.projector.forget_dead_letters(erasure.namespace, erasure.memory_ids, erasure.up_to_lsn)
        except PixelmemoryError:
            raise
        except Exception as error:
            raise ProjectionUnavailableError(
                f"dead letters could not be erased: {first_line(error)}", cause_of(error)
            ) from error
        self.host.purge(erasure.namespace, erasure.memory_ids, erasure.up_to_lsn)

    def close(self) -> None:
        """Stop the projector after the batch in hand and let go of the database. Blocking; idempotent."""
        stopped = self.projector.stop()
        # else the claim on the projection is kept, so that nobody else writes beside it
        self.host.close(keep_claim=not stopped)
        if not stopped:
            _logger.critical("the projector is stuck in the database; its tables stay claimed by this process")


def _reconcile(
    host: Host,
    state: ProjectionState,
    log: EventLog,
    rewritten_lsn: int,
    *,
    rebuild: bool,
    recorded: Mapping[str, str] | None,
    schema: Schema | None,
) -> int:
    """Make the projection fit the store, and return its checkpoint."""
    stored = host.stored_state()
    if stored is not None and not rebuild:
        found, checkpoint_lsn = stored
        if fits(found.layout, state.layout) and msgspec.structs.replace(found, layout=state.layout) == state:
            if checkpoint_lsn > log.durable_lsn:
                raise CheckpointAheadError(checkpoint_lsn, log.durable_lsn)
            if checkpoint_lsn == 0 or checkpoint_lsn >= rewritten_lsn:
                return checkpoint_lsn
            _logger.warning("the projection %s is older than what was removed from the log: rebuilding", host.name)
        elif found.store_id != state.store_id:
            _logger.warning("the projection %s belongs to another store: it is rebuilt from the log", host.name)
        elif found.format == state.format and (mismatch := find_mismatch(found, state, recorded, schema)):
            raise mismatch
        # else an earlier format or, as the manifest has agreed to it, another model
    host.reset()
    return 0
