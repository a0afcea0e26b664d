"""A connection to the embedded PostgreSQL, and filters evaluated there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import psycopg
import pytest

from pixelmemory.memory.filters import parse_filter
from pixelmemory.options import Options
from pixelmemory.projection.sql.filters import compile_filter

SqlMatches = Callable[[Any, Sequence[Any]], list[bool]]


@pytest.fixture(scope="session")
def connection() -> Iterator[psycopg.Connection[Any]]:
    import pixeltable as pxt
    from pixeltable.env import Env
    from sqlalchemy.engine import make_url

    pxt.init()
    url = make_url(Env.get().db_url)
    host = url.query.get("host", url.host)
    assert isinstance(host, str)
    with psycopg.connect(
        host=host, port=url.port, dbname=url.database, user=url.username, password=url.password, autocommit=True
    ) as opened:
        yield opened


@pytest.fixture(scope="session")
def sql_matches(connection: psycopg.Connection[Any]) -> SqlMatches:
    """Whether each of some documents satisfies a filter, as PostgreSQL sees it."""

    def evaluate(value: Any, documents: Sequence[Any]) -> list[bool]:
        tree = parse_filter(value, Options())
        assert tree is not None
        expression, parameters = compile_filter(tree, metadata="metadata", typed={})
        texts = [msgspec.json.encode(document).decode() for document in documents]
        rows = connection.execute(
            f"SELECT ({expression}) IS TRUE FROM (SELECT n, d::jsonb AS metadata FROM unnest(%(documents)s::text[]) "
            "WITH ORDINALITY AS t(d, n)) AS documents ORDER BY n",
            {**parameters, "documents": texts},
        ).fetchall()
        return [row[0] for row in rows]

    return evaluate
