"""A Pixeltable table with an embedding index, used through its public interface: the baseline without a log.

Also functions that stand for a model and cost nothing. Pixeltable stores where a function was imported from, so they
have a module.
"""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pixeltable as pxt
from pixeltable.func import Batch

from benchmarks.data import Corpus
from pixelmemory.projection.pixeltable.startup import start_pixeltable

__all__ = ["DirectTable", "counted", "embedded_texts"]

#: text -> its vector
_vectors: dict[str, np.ndarray] = {}
#: the texts that :func:`counted` was called for
embedded_texts: list[str] = []


def know(of: Corpus) -> None:
    """Have the functions below give these vectors for these texts."""
    _vectors.update(zip(of.contents, of.vectors, strict=True))


@pxt.udf(batch_size=1024)  # type: ignore[untyped-decorator]
def prepared(content: Batch[str]) -> Batch[pxt.Array[(384,), np.float32]]:
    """The vectors that :func:`know` was told; a changed text keeps its vector."""
    return [_vectors[text.removesuffix("!")] for text in content]


@pxt.udf  # type: ignore[untyped-decorator]
def counted(content: str) -> pxt.Array[(384,), np.float32]:
    """The same, one at a time, and every call is counted."""
    embedded_texts.append(content)
    vector = _vectors.get(content)
    return np.ones(384, dtype=np.float32) if vector is None else vector


class DirectTable:
    """``content``, ``metadata`` and ``row`` with an HNSW index, as Pixeltable makes it."""

    def __init__(self, of: Corpus) -> None:
        know(of)
        self._of = of
        name = f"direct_{uuid.uuid4().hex[:12]}"
        schema: dict[str, Any] = {"row": pxt.Int, "content": pxt.String, "metadata": pxt.Json}
        self._name = name
        start_pixeltable(keep_http_server=False)
        self.table: Any = pxt.create_table(name, schema, primary_key="row")
        self.table.add_embedding_index("content", embedding=prepared)

    def insert(self, first: int, last: int) -> None:
        """Rows ``first`` to ``last`` in one call."""
        self.table.insert(
            [
                {"row": i, "content": self._of.contents[i], "metadata": self._of.metadata[i]}
                for i in range(first, min(last, len(self._of.contents)))
            ]
        )

    def count(self) -> int:
        return int(self.table.count())

    def search(self, vector: np.ndarray, limit: int = 10, group: str | None = None) -> list[int]:
        """Row numbers, nearest first."""
        similarity = self.table.content.similarity(vector=vector)
        query = self.table if group is None else self.table.where(self.table.metadata.group == group)
        found = query.order_by(similarity, asc=False).limit(limit).select(self.table.row, self.table.content)
        return [each["row"] for each in found.collect()]

    def get(self, row: int) -> str:
        found = self.table.where(self.table.row == row).select(self.table.content).collect()
        return str(found[0]["content"])

    def update(self, row: int, content: str) -> None:
        self.table.update({"content": content}, where=self.table.row == row)

    def delete(self, row: int) -> None:
        self.table.delete(where=self.table.row == row)

    def drop(self) -> None:
        pxt.drop_table(self._name)
