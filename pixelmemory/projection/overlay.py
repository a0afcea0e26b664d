"""What a read finds once changes that are not applied yet are laid over the tables: what it would find afterwards.

Exact: the tables answer for every memory but the changed ones, and those are looked at here, by the same conditions,
in the same order, with scores that the database computes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
import numpy as np

from pixelmemory.errors import EmbeddingError, UnembeddableTextError
from pixelmemory.memory.filters import matches
from pixelmemory.memory.metadata import decode_metadata
from pixelmemory.memory.search import Ranking, Search, is_past
from pixelmemory.projection.batches import EmbedTexts
from pixelmemory.projection.changes import Change
from pixelmemory.projection.contract import Host
from pixelmemory.projection.rows import Row, ranked, row_after
from pixelmemory.projection.scaling import scaled

__all__ = ["Overlay"]


class Overlay:
    """The changes that the tables do not show yet, laid over ``host``.

    Args:
        host: what is applied.
        changes: one a memory; what the tables show of them already does no harm.
        embed: the store's model behind its cache, or None.
    """

    def __init__(self, host: Host, changes: Collection[Change], embed: EmbedTexts | None) -> None:
        self._host = host
        #: the last written first, which is how equals are ordered
        self._changes = sorted(changes, key=lambda change: change.lsn, reverse=True)
        self._keys = frozenset(change.key for change in changes)
        self._embed = embed

    def get(self, namespace: str, memory_id: str) -> Row | None:
        """As :meth:`Host.get`."""
        change = next((change for change in self._changes if change.key == (namespace, memory_id)), None)
        if change is None:
            return self._host.get(namespace, memory_id)
        return row_after(change, self._host.get(namespace, memory_id) if change.patch else None)

    def count(self, search: Search) -> int:
        """As :meth:`Host.count`."""
        others = self._host.count(msgspec.structs.replace(search, without=self._keys))
        plain = msgspec.structs.replace(search, ranking=Ranking.NEWEST, vector=None, min_score=None, after=None)
        return others + len(self._changed(plain))

    def search(self, search: Search) -> list[Row]:
        """As :meth:`Host.search`.

        Raises:
            EmbeddingError: the model failed on a text that is not applied yet; the projector will try again.
        """
        if search.limit == 0:
            return []
        last = search.offset + search.limit
        others = self._host.search(msgspec.structs.replace(search, without=self._keys, offset=0, limit=last))
        return ranked(self._changed(search) + others, search)

    def _changed(self, search: Search) -> list[Row]:
        """The changed memories that satisfy ``search``, the last written first."""
        wanted = set(search.namespaces)
        changes = [change for change in self._changes if change.namespace in wanted]
        patched = frozenset(change.key for change in changes if change.patch)
        before: dict[tuple[str, str], Row] = {}
        if patched:
            only = Search(
                search.namespaces,
                ranking=search.ranking,
                vector=search.vector,
                among=patched,
                with_vectors=search.with_vectors,
            )
            before = {row.key: row for row in self._host.search(only)}
            if search.vector is not None:  # with new content, one without a vector may have got one
                every = self._host.search(Search(search.namespaces, among=patched))
                before = {row.key: row for row in every} | before
        found: list[tuple[Change, Row]] = []
        for change in changes:
            row = row_after(change, before.get(change.key))
            if row is not None and _satisfies(row, search):
                found.append((change, row))
        if search.vector is None:
            return [row for _, row in found]
        vectors = self._vectors([change for change, _ in found], search.vector)
        given = self._host.scores(list(vectors.values()), search.vector)
        scores = dict(zip(vectors, given, strict=True))
        scored: list[Row] = []
        for change, row in found:
            if change.content is None:
                score, vector = before[change.key].score, before[change.key].vector
            else:
                score, vector = scores.get(change.key), vectors.get(change.key)
            if score is not None and (search.min_score is None or score >= search.min_score):
                scored.append(row._replace(score=score, vector=vector if search.with_vectors else None))
        return scored

    def _vectors(self, changes: Sequence[Change], query: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        """Of each change with content, where it has one; scaled for the database."""
        vectors: dict[tuple[str, str], np.ndarray] = {}
        wanted: dict[str, list[tuple[str, str]]] = {}
        for change in changes:
            if change.content is None:
                continue
            own = None if change.embedding is None else np.frombuffer(change.embedding, dtype="<f4")
            if own is not None and len(own) == len(query):
                vectors[change.key] = scaled(own)
            else:
                wanted.setdefault(change.content, []).append(change.key)
        for text, vector in self._embedded(list(wanted)).items():
            vectors |= dict.fromkeys(wanted[text], vector)
        return vectors

    def _embedded(self, texts: list[str]) -> dict[str, np.ndarray]:
        """The vectors of ``texts``, without those for which the model has none."""
        while texts and self._embed is not None:
            try:
                return dict(zip(texts, scaled(self._embed(texts)), strict=True))
            except UnembeddableTextError as error:
                del texts[error.index]
            except Exception as error:
                raise EmbeddingError(f"a text that is not applied yet: {error}") from error
        return {}


def _satisfies(row: Row, search: Search) -> bool:
    if search.start is not None and (row.created_at is None or row.created_at < search.start):
        return False
    if search.end is not None and (row.created_at is None or row.created_at > search.end):
        return False
    if not is_past(search, row.place):
        return False
    return search.filter is None or matches(search.filter, decode_metadata(row.metadata_json or "{}"))
