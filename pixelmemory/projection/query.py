"""Reads over the read model: what a caller asks, as plain rows of a projection.

Everything here blocks and runs on a worker thread; waiting for an LSN is the engine's.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Sequence

import pixeltable as pxt

from pixelmemory.embedding import Embedder
from pixelmemory.memory.values import decode_metadata, memory_key
from pixelmemory.models import MemoryRecord
from pixelmemory.projection.contract import Row, Search
from pixelmemory.projection.projection import Projection

__all__ = ["Query", "Search"]


class Query:
    """Reads of one open projection."""

    def __init__(self, projection: Projection) -> None:
        self._projection = projection

    def get(self, namespace: str, memory_id: str) -> MemoryRecord | None:
        table = self._projection.tables.name_of(namespace)
        if table is None:
            return None
        row = self._projection.reads.get(table, namespace, memory_id)
        return None if row is None else _record(row)

    def search(self, search: Search) -> list[MemoryRecord]:
        table = self._projection.tables.name_of(search.namespace)
        if table is None or search.limit == 0:
            return []
        return [_record(row) for row in self._projection.reads.search(table, search)]

    def truncated(self, namespace: str, limit: int, embedder: Embedder) -> list[MemoryRecord]:
        """The memories whose content is longer than ``embedder`` reads, newest first."""
        table = self._projection.tables.name_of(namespace)
        window = embedder.window
        if table is None or window is None:
            return []
        found: list[MemoryRecord] = []
        with contextlib.closing(self._projection.reads.long_texts(table, namespace, window)) as pages:
            while len(found) < limit and (page := next(pages, None)) is not None:
                cut = embedder.truncated([row.content for row in page])
                found += [_record(row) for row, is_cut in zip(page, cut, strict=True) if is_cut]
        return found[:limit]

    def existing(self, namespace: str, memory_ids: Iterable[str]) -> set[str]:
        """Which of ``memory_ids`` are visible in ``namespace``."""
        table = self._projection.tables.name_of(namespace)
        if table is None:
            return set()
        keys: dict[uuid.UUID, str] = {memory_key(memory_id): memory_id for memory_id in memory_ids}
        found = self._projection.reads.existing(table, namespace, list(keys))
        return {keys[key] for key in found}

    def count(self, namespaces: Sequence[str]) -> dict[str, int]:
        """Visible memories of each of ``namespaces``."""
        counts = {}
        for namespace in namespaces:
            table = self._projection.tables.name_of(namespace)
            counts[namespace] = 0 if table is None else self._projection.reads.count(table, namespace)
        return counts

    def namespaces(self) -> list[str]:
        """The namespaces that hold at least one visible memory, in code-point order."""
        counts = self.count(self._projection.tables.namespaces())
        return [namespace for namespace, memories in counts.items() if memories]

    def table(self, namespace: str) -> pxt.Table:
        """The Pixeltable table of ``namespace``, made if it is not there."""
        return self._projection.namespace_table(namespace)


def _record(row: Row) -> MemoryRecord:
    record = MemoryRecord(
        memory_id=row.memory_id,
        timestamp=row.created_at,
        content=row.content,
        metadata={} if row.metadata_json is None else decode_metadata(row.metadata_json),
    )
    if row.score is not None:
        record["similarity_score"] = row.score
    return record
