"""The first stores of a fresh Pixeltable, opened at the same time: Pixeltable would make their common folder twice."""

from __future__ import annotations

from pathlib import Path

from tests.harness.engine_tools import pixeltable_home, run_script

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
