"""Reads of the projection: what a caller asks, as records.

Everything here blocks and runs on a worker thread; what a read waits for, and which changes are laid over the tables,
is the engine's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from pixelmemory.embedding import Embedder
from pixelmemory.memory.search import Search
from pixelmemory.models import MemoryRecord
from pixelmemory.projection.batches import EmbedTexts
from pixelmemory.projection.changes import Change
from pixelmemory.projection.contract import Host
from pixelmemory.projection.overlay import Overlay
from pixelmemory.projection.rows import record_of
from pixelmemory.projection.varied import varied

__all__ = ["Query"]


class Query:
    """Reads of one open projection.

    Args:
        host: what is applied.
        embed_ahead: the store's model, or None: for texts that are not applied yet.
    """

    def __init__(self, host: Host, embed_ahead: EmbedTexts | None = None) -> None:
        self._host = host
        self._embed_ahead = embed_ahead

    def get(self, namespace: str, memory_id: str, changes: Collection[Change] = ()) -> MemoryRecord | None:
        """One memory, or None."""
        row = self._over(changes).get(namespace, memory_id)
        return None if row is None else record_of(row)

    def search(self, search: Search, changes: Collection[Change] = ()) -> list[MemoryRecord]:
        """The memories that satisfy ``search``, best first.

        Args:
            changes: those of its namespaces that the tables may not show yet.
        """
        reads = self._over(changes)
        is_plain = search.distinct is None and search.diversity is None
        rows = reads.search(search) if is_plain else varied(search, reads.search)
        return [record_of(row, named=search.named) for row in rows]

    def count(self, search: Search, changes: Collection[Change] = ()) -> int:
        """How many memories satisfy the conditions of ``search``."""
        return self._over(changes).count(search)

    def _over(self, changes: Collection[Change]) -> Host | Overlay:
        return Overlay(self._host, changes, self._embed_ahead) if changes else self._host

    def truncated(self, namespace: str, limit: int, embedder: Embedder) -> list[MemoryRecord]:
        """The memories whose content is longer than ``embedder`` reads, newest first."""
        window = embedder.window
        if window is None:
            return []
        found: list[MemoryRecord] = []
        with contextlib.closing(self._host.long_texts(namespace, window)) as pages:
            while len(found) < limit and (page := next(pages, None)) is not None:
                cut = embedder.truncated([row.content for row in page])
                found += [record_of(row) for row, is_cut in zip(page, cut, strict=True) if is_cut]
        return found[:limit]

    def existing(self, namespace: str, memory_ids: Collection[str]) -> set[str]:
        """Which of ``memory_ids`` are visible in ``namespace``."""
        return self._host.existing(namespace, memory_ids)

    def knows(self, namespace: str) -> bool:
        """Whether ``namespace`` ever held a memory."""
        return self._host.knows(namespace)

    def known(self) -> list[str]:
        """Every namespace that ever held a memory in the tables."""
        return self._host.namespaces()

    def namespaces(self, changes: Collection[Change] = ()) -> list[str]:
        """The namespaces that hold at least one memory, in code-point order."""
        changed = {change.namespace for change in changes}
        found = self._host.occupied([each for each in self._host.namespaces() if each not in changed])
        found |= {each for each in changed if self.count(Search((each,)), [c for c in changes if c.namespace == each])}
        return sorted(found)
