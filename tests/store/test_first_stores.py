"""The first stores of a fresh Pixeltable, opened at the same time: Pixeltable would make their common folder twice."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from pixelmemory import ProjectionUnavailableError, UnavailableCause
from pixelmemory.projection.pixeltable import tables
from pixelmemory.projection.pixeltable.startup import connection_string
from tests.harness.engine_tools import open_memory, pixeltable_home, run_script

FIRST_STORES = """
    import sys, threading
    from pixelmemory import Memory, Options
    from pixelmemory.projection.pixeltable.startup import start_pixeltable

    start_pixeltable(keep_http_server=False)
    together = threading.Barrier(4)

    def live(name):
        options = Options(home=sys.argv[1], progress=False)
        together.wait()
        with Memory(name, embedding_config={"dimensions": 3}, options=options) as mem:
            mem.add_entry("text", embedding=[1, 2, 3])
            mem.flush()
            print(mem.count(consistency="eventual"), flush=True)

    threads = [threading.Thread(target=live, args=[f"store{n}"]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_the_first_stores_of_a_database_are_made_at_once(tmp_path: Path) -> None:
    with pixeltable_home() as home:
        done = run_script(FIRST_STORES, tmp_path, PIXELTABLE_HOME=str(home))
        assert done.stdout.split() == ["1"] * 4, done.stderr


def test_a_folder_that_another_makes_for_long_is_an_error(
    tmp_path: Path, store_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "FOLDER_SECONDS_MAX", 0.2)
    open_memory(tmp_path, f"{store_name}_first").close()  # it starts Pixeltable
    with psycopg.connect(connection_string(), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (tables._FOLDERS_KEY,))
        with pytest.raises(ProjectionUnavailableError, match="lock timeout") as caught:
            open_memory(tmp_path, store_name)
        assert caught.value.cause is UnavailableCause.TIMEOUT
    with open_memory(tmp_path, store_name) as memory:
        assert memory.health().ok
