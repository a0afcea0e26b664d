"""The other stores, each in a process of its own. Nothing else imports them.

    python -m benchmarks.stores.peers NAME --rows 10000         every operation, as JSON on stdout
    python -m benchmarks.stores.peers NAME --rows 10000 --serve one operation a line of stdin, one of JSON on stdout

They run embedded, on files, with their defaults except where a line says otherwise, with telemetry off. What they
promise for a write differs: sqlite-vec flushes each one (``synchronous=FULL``) as Pixelmemory does, and the others
leave that to the operating system, in whole or in part.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import data
from benchmarks.place import environment, stop_postgres
from benchmarks.stores.contenders import ALWAYS, LIMIT, Contender, NotOfferedError, Session

__all__ = ["NAMES", "PEERS", "installed", "main"]


class Chroma:
    def __init__(self, folder: Path, of: data.Corpus) -> None:
        import chromadb
        from chromadb.config import Settings

        self.version = chromadb.__version__
        self._of = of
        client = chromadb.PersistentClient(str(folder / "chroma"), Settings(anonymized_telemetry=False))
        self._rows: Any = client.create_collection(
            "memories", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )

    def add(self, first: int, last: int) -> None:
        self._rows.add(
            ids=[str(row) for row in range(first, last)],
            documents=self._of.contents[first:last],
            embeddings=self._of.vectors[first:last],
            metadatas=[
                {key: value for key, value in row.items() if key != "tags"} for row in self._of.metadata[first:last]
            ],
        )

    def settle(self) -> None:
        """An add returns when it is searchable."""

    def search(self, vector: NDArray[np.float32], group: str | None) -> list[int]:
        where = None if group is None else {"group": group}
        include = ["documents", "metadatas", "distances"]
        found = self._rows.query(query_embeddings=vector[None, :], n_results=LIMIT, where=where, include=include)
        return [int(each) for each in found["ids"][0]]

    def get(self, row: int) -> str:
        return str(self._rows.get(ids=[str(row)])["documents"][0])

    def update(self, row: int, content: str) -> None:
        self._rows.update(ids=[str(row)], documents=[content], embeddings=self._of.vectors[row : row + 1])

    def delete(self, row: int) -> None:
        self._rows.delete(ids=[str(row)])

    def count(self) -> int:
        return int(self._rows.count())

    def close(self) -> None:
        """It has nothing to close."""


class Lance:
    def __init__(self, folder: Path, of: data.Corpus) -> None:
        import lancedb
        import pyarrow as pa

        self.version = lancedb.__version__
        self._of = of
        schema = pa.schema(
            [
                ("id", pa.int64()),
                ("content", pa.string()),
                ("group", pa.string()),
                ("vector", pa.list_(pa.float32(), data.DIMENSIONS)),
            ]
        )
        self._rows: Any = lancedb.connect(folder / "lance").create_table("memories", schema=schema)

    def add(self, first: int, last: int) -> None:
        self._rows.add(
            [
                {
                    "id": row,
                    "content": self._of.contents[row],
                    "group": self._of.metadata[row]["group"],
                    "vector": self._of.vectors[row],
                }
                for row in range(first, last)
            ]
        )

    def settle(self) -> None:
        """Its search without an index is exact; its files are merged."""
        self._rows.optimize()

    def search(self, vector: NDArray[np.float32], group: str | None) -> list[int]:
        query = self._rows.search(vector).distance_type("cosine").limit(LIMIT).select(["id", "content"])
        if group is not None:
            query = query.where(f"`group` = '{group}'", prefilter=True)
        return [each["id"] for each in query.to_list()]

    def get(self, row: int) -> str:
        return str(self._rows.search().where(f"id = {row}").select(["content"]).limit(1).to_list()[0]["content"])

    def update(self, row: int, content: str) -> None:
        self._rows.update(where=f"id = {row}", values={"content": content, "vector": self._of.vectors[row]})

    def delete(self, row: int) -> None:
        self._rows.delete(f"id = {row}")

    def count(self) -> int:
        return int(self._rows.count_rows())

    def close(self) -> None:
        """It has nothing to close."""


class Qdrant:
    def __init__(self, folder: Path, of: data.Corpus) -> None:
        import qdrant_client
        from qdrant_client import models

        self.version = importlib.metadata.version("qdrant-client")
        self._of = of
        self._models = models
        self._client = qdrant_client.QdrantClient(path=str(folder / "qdrant"))
        shape = models.VectorParams(size=data.DIMENSIONS, distance=models.Distance.COSINE)
        self._client.create_collection("memories", vectors_config=shape)

    def _point(self, row: int, content: str) -> Any:
        payload = {**self._of.metadata[row], "content": content}
        return self._models.PointStruct(id=row, vector=self._of.vectors[row].tolist(), payload=payload)

    def add(self, first: int, last: int) -> None:
        points = [self._point(row, self._of.contents[row]) for row in range(first, last)]
        self._client.upsert("memories", points)

    def settle(self) -> None:
        """An upsert returns when it is searchable."""

    def search(self, vector: NDArray[np.float32], group: str | None) -> list[int]:
        wanted = None
        if group is not None:
            condition = self._models.FieldCondition(key="group", match=self._models.MatchValue(value=group))
            wanted = self._models.Filter(must=[condition])
        found = self._client.query_points("memories", query=vector, query_filter=wanted, limit=LIMIT)
        return [int(each.id) for each in found.points]

    def get(self, row: int) -> str:
        payload = self._client.retrieve("memories", [row])[0].payload
        return str((payload or {})["content"])

    def update(self, row: int, content: str) -> None:
        self._client.upsert("memories", [self._point(row, content)])

    def delete(self, row: int) -> None:
        self._client.delete("memories", self._models.PointIdsList(points=[row]))

    def count(self) -> int:
        return int(self._client.count("memories").count)

    def close(self) -> None:
        self._client.close()


class SqliteVec:
    """Through apsw, since not every Python's own sqlite3 can load an extension."""

    def __init__(self, folder: Path, of: data.Corpus) -> None:
        import apsw
        import sqlite_vec

        self.version = importlib.metadata.version("sqlite-vec")
        self._of = of
        self._database: Any = apsw.Connection(str(folder / "sqlite-vec"))
        self._database.enable_load_extension(True)
        self._database.load_extension(sqlite_vec.loadable_path())
        columns = (
            "id INTEGER PRIMARY KEY, category TEXT PARTITION KEY, +content TEXT, "
            f"vector FLOAT[{data.DIMENSIONS}] distance_metric=cosine"
        )
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            f"CREATE VIRTUAL TABLE memories USING vec0({columns})",
        ):
            self._database.execute(statement)

    def add(self, first: int, last: int) -> None:
        of = self._of
        with self._database:
            self._database.executemany(
                "INSERT INTO memories(id, category, vector, content) VALUES (?, ?, ?, ?)",
                [
                    (row, of.metadata[row]["group"], of.vectors[row].tobytes(), of.contents[row])
                    for row in range(first, last)
                ],
            )

    def settle(self) -> None:
        """Its search is exact."""

    def search(self, vector: NDArray[np.float32], group: str | None) -> list[int]:
        statement = "SELECT id, content FROM memories WHERE vector MATCH ? AND k = ?"
        values: tuple[Any, ...] = (vector.tobytes(), LIMIT)
        if group is not None:
            statement, values = statement + " AND category = ?", (*values, group)
        return [row[0] for row in self._database.execute(statement, values)]

    def get(self, row: int) -> str:
        return str(next(self._database.execute("SELECT content FROM memories WHERE id = ?", (row,)))[0])

    def update(self, row: int, content: str) -> None:
        values = (content, self._of.vectors[row].tobytes(), row)
        self._database.execute("UPDATE memories SET content = ?, vector = ? WHERE id = ?", values)

    def delete(self, row: int) -> None:
        self._database.execute("DELETE FROM memories WHERE id = ?", (row,))

    def count(self) -> int:
        return int(next(self._database.execute("SELECT count(*) FROM memories"))[0])

    def close(self) -> None:
        self._database.close()


#: name -> the modules that it needs, and how it is made
PEERS: dict[str, tuple[tuple[str, ...], Callable[[Path, data.Corpus], Contender]]] = {
    "chroma": (("chromadb",), Chroma),
    "lancedb": (("lancedb",), Lance),
    "qdrant": (("qdrant_client",), Qdrant),
    "sqlite-vec": (("sqlite_vec", "apsw"), SqliteVec),
}
NAMES = (*ALWAYS, *PEERS)


def installed(name: str) -> bool:
    """Whether the contender ``name`` can be had here; nothing is imported."""
    return name in ALWAYS or all(importlib.util.find_spec(module) is not None for module in PEERS[name][0])


def _serve(session: Session) -> None:
    """One line ``operation calls`` in, one line of JSON out."""
    for line in sys.stdin:
        operation, calls = line.split()
        try:
            answer: Any = session.run(operation, int(calls))
        except NotOfferedError:
            answer = {"seconds": []}
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
        sys.stdout.flush()


def _run_all(session: Session, calls: int) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for operation in Session.OPERATIONS:
        try:
            answers[operation] = session.run(operation, calls)
        except NotOfferedError:
            answers[operation] = None
    return answers


def main(arguments: list[str] | None = None) -> None:
    """Run one contender; what it prints on stdout is JSON alone."""
    parser = argparse.ArgumentParser(description="One other store, timed.")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=50, help="calls behind each median, and rows added one by one")
    parser.add_argument("--folder", type=Path, help="where to write (default: temporary)")
    parser.add_argument("--serve", action="store_true", help="take operations from stdin")
    given = parser.parse_args(arguments)
    if not installed(given.name):
        raise SystemExit(f"{given.name} is not installed")
    with tempfile.TemporaryDirectory(prefix="pixelmemory-peer-") as temporary:
        folder = given.folder or Path(temporary)
        if given.folder is None:
            folder.chmod(0o755)  # PostgreSQL runs as another user where this runs as root
            os.environ.update(environment(folder))
        make = ALWAYS[given.name] if given.name in ALWAYS else PEERS[given.name][1]
        session = Session(make, folder, given.rows, given.calls)
        try:
            if given.serve:
                print(msgspec.json.encode({"version": session.version}).decode(), flush=True)
                _serve(session)
            else:
                answers = {"name": given.name, "version": session.version, **_run_all(session, given.calls)}
                print(msgspec.json.encode(answers).decode())
        finally:
            session.close()
            if given.folder is None:
                stop_postgres(folder)


if __name__ == "__main__":
    main()
