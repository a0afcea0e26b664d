"""Reads of the projection: what a caller asks, as records.

Everything here blocks and runs on a worker thread; waiting for an LSN is the engine's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence

from pixelmemory.embedding import Embedder
from pixelmemory.memory.search import Search
from pixelmemory.models import MemoryRecord
from pixelmemory.projection.contract import Host
from pixelmemory.projection.rows import record_of

__all__ = ["Query"]


class Query:
    """Reads of one open projection."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def get(self, namespace: str, memory_id: str) -> MemoryRecord | None:
        """One memory, or None."""
        row = self._host.get(namespace, memory_id)
        return None if row is None else record_of(row)

    def search(self, search: Search) -> list[MemoryRecord]:
        """The memories that satisfy ``search``, best first."""
        return [record_of(row) for row in self._host.search(search)]

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

    def count(self, namespaces: Sequence[str]) -> dict[str, int]:
        """Visible memories of each of ``namespaces``."""
        return {namespace: self._host.count(namespace) for namespace in namespaces}

    def knows(self, namespace: str) -> bool:
        """Whether ``namespace`` ever held a memory."""
        return self._host.knows(namespace)

    def namespaces(self) -> list[str]:
        """The namespaces that hold at least one visible memory, in code-point order."""
        return [namespace for namespace, memories in self.count(self._host.namespaces()).items() if memories]

    def total(self) -> int:
        """Visible memories of the whole store."""
        return sum(self.count(self._host.namespaces()).values())
