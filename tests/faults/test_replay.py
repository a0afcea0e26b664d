"""Events that a life has applied, and was killed before it could say so: the next life reads them with later ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.engine_oracle import check_store
from tests.harness.engine_tools import open_memory, run_script, vector
from tests.harness.refusals import accept_marked, refuse_marked

#: the rows of a batch are in the table, its checkpoint is not; meanwhile one of its memories is deleted
LIFE = """
import os, sys, threading
from tests.harness.engine_tools import open_memory, vector
from pixelmemory.faults import set_fault_hook

home, name, direct_sql, point, contents = sys.argv[1:]
deleted, applied = threading.Event(), threading.Event()

def hook(here):
    if here == point:
        applied.set()
        deleted.wait(30)
        os._exit(7)

memory = open_memory(home, name, direct_sql=direct_sql == "True")
set_fault_hook(hook)
memory.add_entries([{"content": each, "memory_id": each, "embedding": vector(1)} for each in contents.split()])
assert applied.wait(30)
assert memory.delete_memory("deleted")
deleted.set()
threading.Event().wait(30)
"""


@pytest.mark.parametrize(
    ("direct_sql", "point", "contents"),
    [
        (False, "apply.rows", "deleted kept"),
        (True, "projector.bisect.after", "deleted kept refused"),
        # nothing that is there already refuses the batch when it comes again
        (True, "projector.bisect.after", "deleted refused"),
    ],
    ids=["public API", "default", "default, nothing kept"],
)
def test_a_memory_that_was_deleted_stays_deleted(
    direct_sql: bool, point: str, contents: str, tmp_path: Path, store_name: str
) -> None:
    with open_memory(tmp_path, store_name, direct_sql=direct_sql) as memory:
        memory.add_entries([{"content": "before", "memory_id": "before", "embedding": vector(0)}])
    if direct_sql:
        refuse_marked(store_name)
    ended = run_script(LIFE, tmp_path, store_name, direct_sql, point, contents)
    assert ended.returncode == 7, ended.stderr
    if direct_sql:
        accept_marked(store_name)  # so that nothing is refused, and looked for, when it comes again
    with open_memory(tmp_path, store_name, direct_sql=direct_sql) as memory:
        memory.flush()
        assert memory.health().ok, memory.health()
        assert memory.get_memory("deleted") is None
        assert (memory.get_memory("kept") is not None) == ("kept" in contents)
        check_store(tmp_path, store_name)
