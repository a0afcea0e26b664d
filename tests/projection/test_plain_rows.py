"""Rows written beneath Pixeltable's insert equal those that it writes itself, in every column that PostgreSQL has."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import random
import re
import struct
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import pixeltable as pxt
import psycopg
import pytest

from pixelmemory.memory.identity import memory_key
from pixelmemory.memory.schema import parse_schema
from pixelmemory.memory.state import MemoryState
from pixelmemory.projection.changes import Change
from pixelmemory.projection.contract import ProjectionState
from pixelmemory.projection.embed import VectorSource, register
from pixelmemory.projection.pixeltable import internals as store_sql
from pixelmemory.projection.pixeltable.plain_rows import PlainTables
from pixelmemory.projection.pixeltable.startup import connection_string, start_pixeltable
from pixelmemory.projection.pixeltable.tables import INDEX_NAME, TableSet
from pixelmemory.projection.pixeltable.writer import TableWriter

_folders = itertools.count()

SCHEMA = {"s": str, "i": int, "f": float, "b": bool, "at": dt.datetime, "Tags": list[str], "any_": dict[str, Any]}
TEXTS = ["", "a", "é e\u0301 😀", "\x01\x7f\r\n\t", "'; DROP -- %s \\N \\x", "x" * 300_000, "null", "\u2028\ufeff"]
TIMES_US = [0, -1, 1, 10**15, 253_402_214_400_000_000 - 1, -62_135_510_400_000_000, 946_684_800_000_000]


def projection(
    dimensions: int | None, *, shared: bool = False, schema: object = None, direct_sql: bool = True
) -> tuple[TableSet, TableWriter]:
    start_pixeltable(keep_http_server=False)
    folder = f"plain_{next(_folders)}"
    parsed = parse_schema(schema)
    fingerprint = parsed.fingerprint if parsed is not None else None
    state = ProjectionState(folder, "shared" if shared else "per_namespace", None, dimensions, fingerprint)
    tables = TableSet(folder, state, parsed, direct_sql=direct_sql)
    tables.initialize()
    tables.load()
    source = VectorSource(None)
    register(folder, source)
    return tables, TableWriter(tables, source)


def changes_of(count: int, seed: int, first_lsn: int = 1) -> list[Change]:
    """Inserts of every kind of value; each content is another."""
    draw = random.Random(seed)

    def number() -> Any:
        value = struct.unpack("d", draw.randbytes(8))[0]
        return draw.choice([value if value - value == 0 else 0.5, draw.randint(-(10**20), 10**20), 1e16, 10**400, -0.0])

    def typed() -> dict[str, Any]:
        values = {
            "s": [draw.choice(TEXTS[:5]), None, 3],
            "i": [draw.randint(-(2**63), 2**63 - 1), None, "x", True],
            "f": [number(), 5, 2**70, None, "x"],
            "b": [True, False, None, 1],
            "at": ["2024-05-01T09:00:00+02:00", "0001-01-02T00:00:00.000001Z", "9999-12-30T00:00:00Z", "no", None],
            "Tags": [[], ["é", "b"], None, {"no": [1.5, None]}],
            "any_": [{"é": {"deep": [None, True, number()]}}, {}, None],
        }
        return {name: draw.choice(values[name]) for name in values if draw.random() < 0.8}

    rows: list[Change] = []
    for lsn in range(first_lsn, first_lsn + count):
        metadata = {**typed(), draw.choice(TEXTS[:5]): [number(), {"": draw.choice(TEXTS[:5])}]}
        text = json.dumps(metadata, ensure_ascii=draw.random() < 0.5, separators=(",", ":")).encode()
        name = draw.choice(["m{}", "é {}", "00000000-0000-4000-8000-{:012}", "00000000-0000-5000-8000-{:012}"])
        rows.append(
            Change(
                draw.choice(["one", "two é"]),
                name.format(lsn),
                lsn,
                insert=True,
                state=MemoryState(
                    f"{draw.choice(TEXTS)}{lsn}" if lsn != 5 else "",
                    metadata_json=draw.choice([text, text, b"{}"]),
                    created_at_us=draw.choice([*TIMES_US, draw.randint(0, 2 * 10**15)]),
                    embedding=None,
                ),
            )
        )
    return rows


def vectors_of(changes: Sequence[Change], dimensions: int | None) -> dict[tuple[str, str], np.ndarray | None]:
    if dimensions is None:
        return {}
    source = np.random.default_rng(len(changes))
    drawn = (
        source.standard_normal((len(changes), dimensions)).astype("f4")
        * source.choice([1, 1e-6, 300], len(changes))[:, None]
    )
    return {c.key: None if n % 7 == 3 else drawn[n].astype("f4") for n, c in enumerate(changes)}


def insert_plain(tables: TableSet, changes: Sequence[Change], vectors: Any) -> bool:
    """Insert ``changes``, of one table, if it is plain."""
    namespace = changes[0].namespace
    tables.create({namespace: len(changes)})
    name = tables.name_of(namespace)
    assert name is not None
    table = tables.table(name)
    with store_sql.transaction([table]) as connection:
        return PlainTables(tables).insert(connection, table, changes, vectors, shared=tables.is_shared(name))


def stored(tables: TableSet, namespace: str) -> tuple[list[tuple[Any, ...]], list[Any]]:
    """Every physical column of every row ever, as text, and Pixeltable's own records of the table."""
    name = tables.name_of(namespace)
    assert name is not None
    physical = tables.physical(name).name
    table_id = physical.removeprefix("tbl_")
    with psycopg.connect(connection_string()) as connection:
        found = connection.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position",
            (physical,),
        ).fetchall()
        columns = ", ".join(f"{column}::text" for (column,) in found)
        rows = connection.execute(f"SELECT {columns} FROM {physical} t ORDER BY t.rowid, t.v_min".encode()).fetchall()
        records = [
            connection.execute(f"SELECT md FROM {kept} {order}".encode(), (uuid.UUID(table_id),)).fetchall()
            for kept, order in (
                ("tables", "WHERE id = %s"),
                ("tableversions", "WHERE tbl_id = %s ORDER BY version"),
                ("tableschemaversions", "WHERE tbl_id = %s ORDER BY schema_version"),
            )
        ]
    text = json.dumps([[md for (md,) in each] for each in records], sort_keys=True)
    for own in (str(uuid.UUID(table_id)), tables.path, tables.state.store_id):
        text = text.replace(own, "own")
    text = re.sub(r'"(created_at|completed_at)": [0-9.]+', '"at": 0', text)
    return rows, json.loads(text)


@pytest.mark.parametrize(
    ("dimensions", "schema", "shared"),
    [
        (None, SCHEMA, True),
        (None, None, False),
        (8, SCHEMA, False),
        (8, None, True),
        (2001, SCHEMA, True),
        (2001, None, False),
    ],
    ids=lambda value: str(value) if isinstance(value, (int, bool)) else "schema" if value else "none",
)
def test_every_physical_column_is_as_pixeltable_writes_it(
    dimensions: int | None, schema: object, *, shared: bool
) -> None:
    """Values of all kinds, in three versions with a delete between them."""
    fast, fast_writer = projection(dimensions, shared=shared, schema=schema)
    own, own_writer = projection(dimensions, shared=shared, schema=schema, direct_sql=False)
    first = changes_of(60, seed=1)
    more = changes_of(20, seed=2, first_lsn=100)
    gone = [Change(c.namespace, c.memory_id, 99, delete=True) for c in first[::9]]
    for writer in (fast_writer, own_writer):
        for batch in (first, gone, more):
            writer.prepare(batch)
            assert not writer.apply(batch, vectors_of(batch, dimensions), checkpoint_lsn=batch[-1].lsn)
    for namespace in ("one", "two é"):
        rows, records = stored(fast, namespace)
        expected_rows, expected_records = stored(own, namespace)
        assert len(rows) > 20
        assert rows == expected_rows
        assert records == expected_records
    # and what was compared was indeed written by the one and by the other
    last = changes_of(5, seed=3, first_lsn=200)
    last = [change for change in last if shared or change.namespace == last[0].namespace]
    assert insert_plain(fast, last, vectors_of(last, dimensions))


def test_one_text_with_two_vectors_takes_one_version() -> None:
    """Pixeltable finds vectors by their text, and would need two."""
    tables, writer = projection(8)
    twins = [Change("one", f"m{n}", n, insert=True, state=MemoryState("same", n, b"{}", None)) for n in (1, 2, 3)]
    vectors = {change.key: np.full(8, change.lsn, "f4") if change.lsn < 3 else None for change in twins}
    writer.prepare(twins)
    before = len(stored(tables, "one")[1][1])
    writer.apply(twins, vectors, checkpoint_lsn=3)
    assert len(stored(tables, "one")[1][1]) == before + 1
    table = tables.physical(tables.name_of("one") or "")
    with psycopg.connect(connection_string()) as connection:
        found = connection.execute(f"SELECT {table.vector}::text FROM {table.name} ORDER BY rowid".encode()).fetchall()
    assert [row[0] for row in found] == ["[1,1,1,1,1,1,1,1]", "[2,2,2,2,2,2,2,2]", None]


def entries(first: int, count: int) -> tuple[list[Change], dict[tuple[str, str], np.ndarray]]:
    rows = [
        Change("one", f"m{n}", n, insert=True, state=MemoryState(f"text {n}", n, b"{}", None))
        for n in range(first, first + count)
    ]
    return rows, {change.key: np.eye(8, dtype="f4")[change.lsn % 8] for change in rows}


def test_pixeltable_goes_on_with_such_a_table() -> None:
    """Its reads, similarity, history, revert, and what a user adds to the table: all as if it had written the rows."""
    tables, _ = projection(8)
    assert insert_plain(tables, *entries(1, 4))
    assert insert_plain(tables, *entries(5, 2))
    name = tables.name_of("one")
    assert name is not None
    table = pxt.get_table(f"{tables.path}/{name}")
    lsns = [row["lsn"] for row in table.order_by(table.lsn).select(table.lsn).collect()]
    assert lsns == [1, 2, 3, 4, 5, 6]
    near = table.content.similarity(vector=np.eye(8, dtype="f4")[3])
    (best,) = table.order_by(near, asc=False).limit(1).select(table.content, near=near).collect()
    assert (best["content"], round(best["near"], 6)) == ("text 3", 1.0)
    versions = table.get_versions()
    assert [(each["change_type"], each["inserts"], each["errors"]) for each in versions[:2]] == [
        ("data", 2, 0),
        ("data", 4, 0),
    ]
    past = pxt.get_table(f"{tables.path}/{name}:{versions[1]['version']}")
    assert past.count() == 4
    table.revert()
    assert sorted(row["lsn"] for row in table.select(table.lsn).collect()) == [1, 2, 3, 4]
    snapshot = pxt.create_snapshot(f"{tables.path}/then", table)
    assert insert_plain(tables, *entries(7, 3))  # a snapshot has nothing to be kept up
    assert (snapshot.count(), table.count()) == (4, 7)
    table.revert()
    assert (snapshot.count(), table.count()) == (4, 4)


def test_a_users_additions_are_kept_up() -> None:
    """From the batch after it: a computed column, a view, rows of their own; and the rows that are there already."""
    tables, writer = projection(8)
    changes, vectors = entries(1, 4)
    assert insert_plain(tables, changes, vectors)
    name = tables.name_of("one")
    assert name is not None
    table = pxt.get_table(f"{tables.path}/{name}")
    table.add_computed_column(twice=table.lsn * 2)
    view = pxt.create_view(
        f"{tables.path}/evens", table.where(table.lsn % 2 == 0), additional_columns={"half": table.lsn / 2}
    )
    more, more_vectors = entries(5, 4)
    assert not insert_plain(tables, more, more_vectors)
    writer.apply(more, more_vectors, checkpoint_lsn=8)
    table.insert([{"memory_id": memory_key("mine"), "content": "text 1", "lsn": 10}], on_error="ignore")
    found = {row["lsn"]: row["twice"] for row in table.select(table.lsn, table.twice).collect()}
    assert found == {lsn: 2 * lsn for lsn in (*range(1, 9), 10)}
    assert {row["half"] for row in view.select(view.half).collect()} == {1, 2, 3, 4, 5}
    pxt.drop_table(f"{tables.path}/evens")
    table.drop_column("twice")
    assert insert_plain(tables, *entries(11, 2))
    rows = stored(tables, "one")[0]
    assert [row[0] for row in rows] == [str(n) for n in range(11)]


def _computed(table: pxt.Table) -> None:
    table.add_computed_column(more=table.lsn + 1)


def _column(table: pxt.Table) -> None:
    table.add_column(more=pxt.Int | None)


def _view(table: pxt.Table) -> None:
    pxt.create_view(f"{table.get_metadata()['path']}_view", table)


def _btree(table: pxt.Table) -> None:
    table.add_btree_index("lsn")


def _second_index(table: pxt.Table) -> None:
    table.add_embedding_index("id_text", idx_name="other", string_embed=_embedding(table))


def _other_function(table: pxt.Table) -> None:
    function = _embedding(table)
    table.drop_embedding_index(idx_name=INDEX_NAME)
    table.add_embedding_index("content", idx_name=INDEX_NAME, string_embed=function)


def _no_index(table: pxt.Table) -> None:
    table.drop_embedding_index(idx_name=INDEX_NAME)


def _renamed(table: pxt.Table) -> None:
    table.rename_column("id_text", "their_name")


def _embedding(table: pxt.Table) -> Any:
    from pixelmemory.projection.embed import embed_content

    return embed_content.using(store_id=str(table.get_metadata()["path"]).split("/")[1], dimensions=4)


@pytest.mark.parametrize(
    "change_table",
    [_computed, _column, _view, _btree, _second_index, _other_function, _no_index, _renamed],
    ids=lambda change: str(change.__name__),
)
def test_a_table_that_is_not_plain_is_left_to_pixeltable(change_table: Any) -> None:
    tables, _ = projection(8)
    assert insert_plain(tables, *entries(1, 2))
    name = tables.name_of("one")
    change_table(pxt.get_table(f"{tables.path}/{name}"))
    before = stored(tables, "one")
    assert not insert_plain(tables, *entries(3, 2))
    assert stored(tables, "one") == before


def test_a_missing_vector_is_left_to_pixeltable() -> None:
    tables, _ = projection(8)
    changes, vectors = entries(1, 2)
    del vectors[changes[1].key]
    assert not insert_plain(tables, changes, vectors)


@pytest.mark.parametrize("fault", ["duplicate", "vector", "text"])
def test_a_refused_row_leaves_nothing(fault: str) -> None:
    """Neither rows nor a version: the events of the batch are looked through one by one, as ever."""
    tables, _ = projection(8)
    assert insert_plain(tables, *entries(1, 2))
    before = stored(tables, "one")
    changes, vectors = entries(3, 3)
    if fault == "duplicate":
        changes[1].memory_id = "m1"
        vectors[changes[1].key] = vectors[changes[0].key]
    elif fault == "vector":
        vectors[changes[1].key] = np.zeros(7, "f4")
    else:
        changes[1].state = MemoryState("\ud800", 1, b"{}", None)
    with pytest.raises(Exception, match=r"duplicate key|expected 8 dimensions|surrogates not allowed"):
        insert_plain(tables, changes, vectors)
    assert stored(tables, "one") == before
    assert insert_plain(tables, *entries(3, 3))
