"""Whatever the methods return is JSON through one call."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelmemory import Health, InvalidArgumentError, InvalidTypeError, Memory, MemoryPage, to_json
from tests.harness.engine_tools import open_memory, options_at, vector

NOON = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)


def test_what_reads_return(tmp_path: Path, store_name: str) -> None:
    metadata = {"z": 10**50, "a": [1, 1.0, 1e300, None, True, "é\u2028"], "nested": {"b": {}}}
    with open_memory(tmp_path, store_name) as mem:
        mem.add_entry("Ada's tea", "ann", metadata, memory_id="one", timestamp=NOON, embedding=vector(1))
        record = {"memory_id": "one", "timestamp": "2024-05-01T12:00:00Z", "content": "Ada's tea", "metadata": metadata}
        [found] = json.loads(to_json(mem.search("ann", vector=vector(1))))
        assert found.pop("similarity_score") == pytest.approx(1, abs=1e-6)
        assert found == record
        assert list(found["metadata"]) == list(metadata), "in its order"
        assert json.loads(to_json(mem.get_memory("one", "ann"))) == record
        assert json.loads(to_json(mem.list_memories("ann"))) == {"memories": [record], "next": None}
        assert json.loads(to_json({"found": list(mem.iterate("ann"))})) == {"found": [record]}
        stats = mem.stats()
        assert json.loads(to_json(stats)) == stats._asdict()
        assert to_json(mem.health()) == b'{"ok":true,"problems":[]}'
        assert to_json(mem.namespaces()) == b'["ann"]'
        assert to_json(mem.get_memory("none", "ann")) == b"null"
    stores = Memory.stores(options=options_at(tmp_path))
    assert json.loads(to_json(stores)) == stores


def test_problems_of_the_health() -> None:
    assert to_json(Health(False, ("writes fail: disk full", "ö"))) == (
        '{"ok":false,"problems":["writes fail: disk full","ö"]}'.encode()
    )
    assert to_json([MemoryPage([], "after")]) == b'[{"memories":[],"next":"after"}]'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (NOON.replace(microsecond=5, tzinfo=dt.timezone(dt.timedelta(hours=2))), b'"2024-05-01T12:00:00.000005+02:00"'),
        (np.float32(0.5), b"0.5"),
        (np.arange(3), b"[0,1,2]"),
        (-(10**30), b"-1000000000000000000000000000000"),
    ],
    ids=["offset", "numpy", "array", "integer"],
)
def test_values(value: object, text: bytes) -> None:
    assert to_json(value) == text


def test_what_is_no_json() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidTypeError, match="value must be what a method of Memory returns; JSON has no object"):
        to_json({"x": object()})
    for value in ("\ud800", endless):
        with pytest.raises(InvalidArgumentError) as raised:
            to_json(value)
        assert raised.value.field == "value"
