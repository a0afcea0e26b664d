"""``pixelmemory verify`` and ``repair`` of stores with tables."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pixeltable as pxt
import psycopg
import pytest

from pixelmemory import Layout, Memory
from pixelmemory.store.manifest import Manifest
from tests.harness.cli_tools import Program, flip, frames
from tests.harness.engine_tools import tables_path, with_pixeltable
from tests.harness.logs import segment_paths

if TYPE_CHECKING:
    from tests.conftest import OpenMemory

PAGE = Path(__file__).parent.parent.parent / "docs/command-line.md"


def fill(memory: Memory) -> None:
    """Memories of every kind: updated, deleted, added again, with odd ids, values and times."""
    memory.add_entries([{"content": f"text {n}", "memory_id": f"id-{n}", "metadata": {"n": n}} for n in range(10)])
    memory.add_entry("", "other namespace \x1b", {"a": [1, 1.0, 1e300, -0.0, 10**30, None, "é\u2028"], "": {"b": True}})
    memory.add_entry("early", memory_id="x" * 300, timestamp=dt.datetime(1, 1, 3, tzinfo=dt.UTC))
    memory.add_entry("late", timestamp=dt.datetime(9999, 12, 29, 1, 2, 3, 456789, tzinfo=dt.UTC))
    memory.flush()
    memory.update_memory("id-1", content="changed")
    memory.update_memory("id-2", metadata={"changed": True})
    memory.delete_memory("id-3")
    memory.delete_memory("id-4")
    memory.add_entry("again", memory_id="id-4")
    memory.flush()


#: as many rows as :func:`fill` leaves
ROWS = 12


def verify(program: Program, store: Path, status: int) -> dict[str, Any]:
    run = program("verify", store, "--json")
    assert run.err == ""
    report: dict[str, Any] = json.loads(run.out)
    assert (run.status, report["status"]) == (status, status), report
    return report


def table_of(memory: Memory, namespace: str = "default_namespace") -> Any:
    return memory.get_namespace_table(namespace)


# ------------------------------------------------------------------------------------------------------------ verify


@pytest.mark.parametrize(
    "options", [{}, {"layout": Layout.SHARED}, {"direct_sql": False}], ids=["default", "shared", "public API"]
)
def test_clean_while_open_and_closed(
    program: Program, open_memory: OpenMemory, store_name: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    with open_memory(**options) as memory:
        fill(memory)
        report = verify(program, tmp_path / store_name, 0)
        if Path("/proc/locks").exists():
            assert report["open_in_process"] == os.getpid()
        memory.add_entry("later")
    report = verify(program, tmp_path / store_name, 0)
    assert report["open_in_process"] is None
    found = report["projection"]
    counts = {key: found[key] for key in ("rows", "missing", "extra", "different", "inserted_directly", "dead_letters")}
    assert found["compared"]
    assert counts == dict.fromkeys(counts, 0) | {"rows": found["rows"]}
    assert found["rows"] in (ROWS, ROWS + 1)  # the last one may be left to the next open
    assert found["checkpoint_lsn"] in (report["log"]["last_lsn"] - 1, report["log"]["last_lsn"])
    text = program("verify", store_name, "--home", tmp_path)
    assert text.status == 0
    assert f"rows         {found['rows']} compared: 0 missing, 0 extra, 0 different\n" in text.out


def test_rows_that_were_changed_through_pixeltable(
    program: Program, open_memory: OpenMemory, store_name: str, tmp_path: Path
) -> None:
    with open_memory() as memory:
        fill(memory)
        table = table_of(memory)

        def meddle() -> None:
            table.where(table.id_text == "id-1").update({"content": "\x1b[2Jchanged"})
            table.where(table.id_text == "id-2").update({"metadata": {"changed": False}})
            table.where(table.id_text == "id-5").update({"timestamp": dt.datetime(2020, 1, 1, tzinfo=dt.UTC)})
            table.delete(table.id_text == "id-6")
            table.insert([{"memory_id": _uuid(1), "content": "mine"}, {"memory_id": _uuid(2), "content": "mine"}])
            table.insert([{"memory_id": _uuid(3), "id_text": "forged\x1b", "content": "as if logged", "lsn": 3}])

        with_pixeltable(meddle)
        report = verify(program, tmp_path / store_name, 1)
        found = report["projection"]
        assert (found["missing"], found["extra"], found["different"], found["inserted_directly"]) == (1, 1, 3, 2)
        assert report["findings"] == 5
        examples = {(e["kind"], e["memory_id"]): e["columns"] for e in found["examples"]}
        assert examples == {
            ("different", "id-1"): ["content"],
            ("different", "id-2"): ["metadata"],
            ("different", "id-5"): ["timestamp"],
            ("missing", "id-6"): [],
            ("extra", "forged\x1b"): [],
        }
        run = program("verify", store_name, "--home", tmp_path)
        assert "different (content): 'id-1' in namespace 'default_namespace', LSN" in run.out
        assert "missing: 'id-6' in namespace 'default_namespace', LSN 7\n" in run.out
        assert "2 rows inserted directly through Pixeltable: no fault\n" in run.out
        assert run.out.endswith("result       5 findings\n")
        assert "\x1b" not in run.out


def _uuid(number: int) -> Any:
    import uuid

    return uuid.UUID(int=number)


def test_many_findings_are_counted_and_a_few_shown(
    program: Program, open_memory: OpenMemory, store_name: str, tmp_path: Path
) -> None:
    with open_memory() as memory:
        memory.add_entries([{"content": str(n)} for n in range(50)])
        memory.flush()
        table = table_of(memory)
        with_pixeltable(lambda: table.delete(table.lsn > 5))
        report = verify(program, tmp_path / store_name, 1)
        assert report["projection"]["missing"] == 45
        assert len(report["projection"]["examples"]) == 20
        assert "... and 25 rows more\n" in program("verify", store_name, "--home", tmp_path).out


def test_dead_letters(program: Program, open_memory: OpenMemory, store_name: str, tmp_path: Path) -> None:
    with open_memory(layout=Layout.PER_NAMESPACE) as memory:
        memory.add_entry("first")
        memory.flush()

        def refuse() -> None:
            from pixelmemory.projection.pixeltable.internals import resolve
            from pixelmemory.projection.pixeltable.startup import connection_string
            from pixelmemory.projection.pixeltable.tables import table_name

            physical = resolve(pxt.get_table(f"{tables_path(store_name)}/{table_name('default_namespace')}"))
            column = physical.columns["content"]
            with psycopg.connect(connection_string()) as connection:
                statement = f"ALTER TABLE {physical.name} ADD CONSTRAINT no_refused CHECK ({column} <> 'refused')"
                connection.execute(statement.encode())

        with_pixeltable(refuse)
        memory.add_entries([{"content": text, "memory_id": text} for text in ("good", "refused", "better")])
        memory.update_memory("refused", metadata={"a": 1})
        memory.flush()
        report = verify(program, tmp_path / store_name, 1)
        found = report["projection"]
        assert (found["dead_letters"], found["missing"], found["rows"]) == (2, 0, 3)
        run = program("verify", store_name, "--home", tmp_path)
        assert "dead letters 2; see Memory.stats() and retry_dead_letters()\n" in run.out


def test_a_projection_that_is_not_there(
    program: Program, open_memory: OpenMemory, store_name: str, tmp_path: Path
) -> None:
    with open_memory() as memory:
        memory.add_entry("x")
        memory.flush()
    # a store that was renamed, while another one takes its name, has its tables still
    (tmp_path / store_name).rename(tmp_path / f"{store_name}_moved")
    with open_memory() as memory:
        memory.add_entry("y")
        memory.add_entry("z")
        memory.flush()
    assert verify(program, tmp_path / f"{store_name}_moved", 0)["projection"]["rows"] == 1
    assert verify(program, tmp_path / store_name, 0)["projection"]["rows"] == 2
    # a copy of it from before a repair does not fit them
    manifest = Manifest.load(tmp_path / store_name)
    assert manifest is not None
    msgspec.structs.replace(manifest, history_id=uuid.uuid4()).save(tmp_path / store_name)
    report = verify(program, tmp_path / store_name, 2)
    assert "made from another history" in report["projection"]["not_compared_because"]
    store_id = manifest.store_id.hex

    def drop() -> None:
        for path in pxt.list_dirs("pixelmemory", recursive=False):
            if path.endswith(store_id):
                pxt.drop_dir(path, force=True)

    with_pixeltable(drop)
    run = program("verify", tmp_path / store_name)
    assert run.status == 2
    assert "not compared: Pixeltable has no table pixelmemory/" in run.out


def test_no_pixeltable_is_made_where_there_is_none(tmp_path: Path, store_name: str, open_memory: OpenMemory) -> None:
    with open_memory() as memory:
        memory.add_entry("x")
    home = tmp_path / "no-pixeltable"
    done = subprocess.run(
        [sys.executable, "-m", "pixelmemory", "verify", str(tmp_path / store_name)],
        env={**os.environ, "PIXELTABLE_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert (done.returncode, done.stderr) == (2, "")
    assert f"there is no Pixeltable at {home}" in done.stdout
    assert not home.exists()


# ------------------------------------------------------------------------------------------------------------ repair


def test_a_repair_and_what_can_be_added_again(
    program: Program, open_memory: OpenMemory, store_name: str, tmp_path: Path
) -> None:
    store = tmp_path / store_name
    with open_memory(segment_bytes_max=4096) as memory:
        for number in range(30):
            memory.add_entry(f"text {number}", memory_id=f"id-{number}", metadata={"n": number, "pad": "x" * 200})
        memory.update_memory("id-29", content="changed")
        memory.update_memory("id-2", metadata={"changed": True})
        memory.delete_memory("id-28")
        memory.flush()
        last_lsn = memory.last_lsn
    assert last_lsn is not None
    path = segment_paths(store)[1]
    lsn = int(path.stem) + 1
    flip(path, frames(path)[1] + 80)
    report = verify(program, store, 1)
    assert "the log is damaged before the tables' checkpoint" in report["projection"]["not_compared_because"]

    run = program("repair", store, "--yes")
    assert (run.status, run.err) == (0, "")
    assert f"LSN {lsn} to {last_lsn}: {last_lsn - lsn + 1} events\n" in run.out
    (quarantine,) = (store / "quarantine").iterdir()
    rows = [json.loads(line) for line in (quarantine / "rows.jsonl").read_text().splitlines()]
    assert {row["memory_id"] for row in rows} == {f"id-{n}" for n in [2, *range(lsn - 1, 30)]} - {"id-28"}
    (lost,) = [row for row in rows if row["lsn"] == lsn]
    assert (lost["content"], lost["metadata"]["n"]) == (f"text {lsn - 1}", lsn - 1)

    report = verify(program, store, 2)  # until the next open
    assert "before a repair" in report["projection"]["not_compared_because"]
    with open_memory(segment_bytes_max=4096) as memory:
        memory.flush()
        assert memory.count() == lsn - 1
        assert memory.stats().durable_lsn == last_lsn
    assert verify(program, store, 0)["log"]["placeholders"] == last_lsn - lsn + 1

    _add_again(store, quarantine / "events.jsonl")
    with open_memory() as memory:
        memory.flush()
        assert memory.count() == 28  # but for the unreadable one, and for the one that was deleted
        for number, content in ((29, "changed"), (27, "text 27")):
            record = memory.get_memory(f"id-{number}")
            assert record is not None
            assert record["content"] == content
        assert memory.get_memory("id-28") is None
        record = memory.get_memory("id-2")
        assert record is not None
        assert record["metadata"] == {"changed": True}
        new_lsn = memory.stats().durable_lsn
    assert new_lsn > last_lsn
    verify(program, store, 0)


def _add_again(store: Path, saved: Path) -> None:
    """Run the script of the page."""
    (script,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert script.count('Memory("notes")') == 1
    script = script.replace('Memory("notes")', f"Memory({store.name!r}, embedding_config=None)")
    script = script.replace("notes/quarantine/repair-20261122T171500Z/events.jsonl", str(saved))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PIXELMEMORY_HOME": str(store.parent)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_log_that_ends_before_its_tables(
    program: Program, open_memory: OpenMemory, store_name: str, tmp_path: Path
) -> None:
    """An older copy of the log, or one whose end is gone: only the tables know which LSNs were given out."""
    store = tmp_path / store_name
    with open_memory() as memory:
        memory.add_entry("one")
        memory.add_entry("two")
        memory.flush()
    path = segment_paths(store)[0]
    path.write_bytes(path.read_bytes()[: frames(path)[1]])
    report = verify(program, store, 1)
    assert "the tables have applied events that the log does not hold" in report["projection"]["not_compared_because"]
    assert "checkpoint LSN 2, beyond the end of the log\n" in program("verify", store).out
    run = program("repair", store, "--yes")
    assert run.status == 0
    assert "the log ends before LSN 2, which the tables have applied\n" in run.out
    (quarantine,) = (store / "quarantine").iterdir()
    (row,) = (quarantine / "rows.jsonl").read_text().splitlines()
    assert json.loads(row)["content"] == "two"
    with open_memory() as memory:
        memory.add_entry("three")
        assert [found["content"] for found in memory.search()] == ["three", "one"]
        assert memory.last_lsn == 3
    verify(program, store, 0)
