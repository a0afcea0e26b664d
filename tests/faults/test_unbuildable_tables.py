"""unbuildable_tables: where the tables cannot be built or reached, every call ends, with the cause."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from pixelmemory import ProjectionUnavailableError, WaitTimeoutError
from pixelmemory.faults import set_fault_hook
from tests.harness.database_tools import may_mount, suspended
from tests.harness.engine_tools import (
    answer_of,
    async_memory,
    open_memory,
    pixeltable_home,
    run_script,
    script_environment,
    vector,
)
from tests.harness.fault_report import LONG_FORM, FaultReport, Verdict

#: against the minute or more of a wait that has no end; not a measurement
SOON_SECONDS = 20.0

needs_mounts = pytest.mark.skipif(not may_mount(), reason="mounts a small disk, as root can")


# ------------------------------------------------------------------------------------------ a rebuild that is blocked


def _fill(home: Path, name: str, count: int = 30) -> list[str]:
    with open_memory(home, name) as memory:
        return memory.add_entries([{"content": "x" * n, "embedding": vector(n)} for n in range(1, count + 1)])


def _refuse(point: str) -> Callable[[str], None]:
    """Whenever the projector comes to ``point``, the disk is full."""

    def hook(here: str) -> None:
        if here == point:
            raise OSError(28, "No space left on device")

    return hook


@pytest.fixture
def no_faults() -> Iterator[None]:
    yield
    set_fault_hook(None)


@pytest.mark.parametrize("point", ["projector.apply.before", "projector.embed.before", "apply.checkpoint"])
@pytest.mark.usefixtures("no_faults")
def test_an_open_whose_rebuild_is_blocked_ends_with_the_cause(
    tmp_path: Path, store_name: str, point: str, fault_report: FaultReport
) -> None:
    ids = _fill(tmp_path, store_name)
    set_fault_hook(_refuse(point))
    fault_report.add("unbuildable_tables: rebuild blocked at open")
    started = time.monotonic()
    with pytest.raises(ProjectionUnavailableError, match="No space left on device") as caught:
        open_memory(tmp_path, store_name, rebuild=True, wait_timeout_seconds=0.5)
    assert time.monotonic() - started < SOON_SECONDS
    set_fault_hook(None)
    assert "open_without_tables=True" in str(caught.value)
    with open_memory(tmp_path, store_name) as memory:
        found = {record["memory_id"] for record in memory.search(limit=100)}
    fault_report.judge(Verdict(len(ids), lost=len(set(ids) - found)))
    assert found == set(ids)


@pytest.mark.usefixtures("no_faults")
def test_a_store_opens_beside_a_rebuild_that_is_blocked(
    tmp_path: Path, store_name: str, fault_report: FaultReport
) -> None:
    """The rebuild is tried on: the store is red meanwhile, adds are taken, and it becomes green by itself."""
    _fill(tmp_path, store_name)
    set_fault_hook(_refuse("projector.apply.before"))
    fault_report.add("unbuildable_tables: rebuild blocked at open")
    with open_memory(tmp_path, store_name, rebuild=True, wait_timeout_seconds=0.5, open_without_tables=True) as memory:
        assert not memory.health().ok
        assert "No space left on device" in str(memory.health().problems)
        memory.add_entry("taken", embedding=vector(1))
        started = time.monotonic()
        for call in (memory.count, memory.search, lambda: memory.delete_memory("x")):
            with pytest.raises(WaitTimeoutError, match="No space left on device"):
                call()
        assert time.monotonic() - started < SOON_SECONDS
        set_fault_hook(None)
        memory.flush(timeout=60)
        assert memory.health().ok
        assert memory.count() == 31


# ----------------------------------------------------------------------------- a database that cannot start, or is gone

WITHOUT_DATABASE = """
    import json, os, sys, time
    from pathlib import Path
    from tests.harness.database_tools import pid_in, postgres_in, wait_until
    from tests.harness.engine_oracle import check_store
    from tests.harness.engine_tools import open_memory, stop_server, vector
    from pixelmemory import PixelmemoryError, ProjectionUnavailableError
    from pixelmemory.faults import set_fault_hook

    home, name = sys.argv[1:3]
    pixeltable = Path(os.environ["PIXELTABLE_HOME"])
    broken = "shared_preload_libraries = 'no_such_library'\\n"
    fast = {"wait_timeout_seconds": 2.0, "retry_seconds_min": 0.05, "retry_seconds_max": 0.2}

    def settings():
        return pixeltable / "pgdata" / "postgresql.conf"

    def break_database():
        settings().write_text(settings().read_text() + broken)
        os.kill(pid_in(pixeltable), 9)
        wait_until(lambda: not postgres_in(pixeltable))

    def mend_database():
        settings().write_text(settings().read_text().replace(broken, ""))

    def outcome(run):
        started = time.monotonic()
        try:
            result = ["no error", str(run())]
        except PixelmemoryError as error:
            result = [type(error).__name__, str(error)]
        return [*result, time.monotonic() - started]

    def life(what, name):
        answer = {}
        with open_memory(home, name) as memory:
            ids = memory.add_entries([{"content": str(n), "embedding": vector(n)} for n in range(20)])

        if what == "killed during a rebuild":
            def at(point):
                if point == "projector.apply.before":
                    set_fault_hook(None)
                    break_database()
            set_fault_hook(at)
            answer["open"] = outcome(lambda: open_memory(home, name, rebuild=True, **fast))
        else:
            break_database()
            answer["open"] = outcome(lambda: open_memory(home, name, **fast))

        memory = open_memory(home, name, open_without_tables=True, **fast)
        answer["health"] = [memory.health().ok, str(memory.health().problems)]
        added = [memory.add_entry("written without tables", embedding=vector(1))]
        added += memory.add_entries([{"content": "several", "embedding": vector(2)}] * 2)
        reads = {
            "count": memory.count, "search": memory.search, "get": lambda: memory.get_memory(added[0]),
            "nearest": lambda: memory.search(vector=vector(1)),
            "eventual": lambda: memory.count(consistency="eventual"),
            "namespaces": memory.namespaces, "flush": memory.flush,
            "table": lambda: memory.get_namespace_table("default_namespace"),
            "update": lambda: memory.update_memory(added[0], content="z", embedding=vector(1)),
            "delete": lambda: memory.delete_memory(added[0]),
            "own id": lambda: memory.add_entry("z", memory_id="mine", embedding=vector(1)),
            "erase": lambda: memory.erase_memory(added[0]),
            "retry": memory.retry_dead_letters,
        }
        answer["reads"] = {call: outcome(run) for call, run in reads.items()}
        answer["stats"] = [memory.stats().durable_lsn, memory.stats().watermark]
        answer["close"] = outcome(memory.close)
        again = open_memory(home, name, open_without_tables=True, **fast)  # a restart in this state
        added.append(again.add_entry("after a restart without tables", embedding=vector(3)))
        again.close()
        mend_database()
        with open_memory(home, name) as memory:
            found = {record["memory_id"] for record in memory.search(limit=1000)}
            answer["lost"] = len({*ids, *added} - found)
            answer["more"] = len(found - {*ids, *added, "mine"})
            answer["healthy"] = memory.health().ok
            answer["acknowledged"] = len(ids) + len(added)
            check_store(Path(home), name)
        return answer

    print(json.dumps({what: life(what, f"{name}_{n}") for n, what in enumerate(sys.argv[3:])}))
"""


def test_a_database_that_is_gone(tmp_path: Path, store_name: str, fault_report: FaultReport) -> None:
    """At open, or killed in the midst of a rebuild, and it stays away."""
    whats = ("cannot start at open", "killed during a rebuild")
    with pixeltable_home() as pixeltable:
        done = run_script(
            WITHOUT_DATABASE, tmp_path, store_name, *whats, timeout_seconds=400, PIXELTABLE_HOME=str(pixeltable)
        )
    for what, answer in answer_of(done).items():
        fault_report.add(f"unbuildable_tables: database {what}")
        fault_report.judge(Verdict(answer["acknowledged"], lost=answer["lost"]))
        kind, message, seconds = answer["open"]
        assert kind == "ProjectionUnavailableError"
        assert "no_such_library" in message
        assert seconds < SOON_SECONDS
        ok, problems = answer["health"]
        assert not ok
        assert "no_such_library" in problems
        for call, (kind, message, seconds) in answer["reads"].items():
            if call != "retry":  # there are none
                assert kind == "ProjectionUnavailableError", (call, kind, message)
                assert "no_such_library" in message, (call, message)
            assert seconds < SOON_SECONDS, call
        assert answer["close"][0] == "no error"
        assert (answer["lost"], answer["more"], answer["healthy"]) == (0, 0, True)


# ------------------------------------------------------------------------------------------------------------- Ctrl-C

KEYS = """
    import json, os, signal, sys, threading, time
    from pathlib import Path
    from tests.harness.database_tools import pid_in, suspended
    from tests.harness.engine_tools import open_memory, vector
    from pixelmemory.faults import set_fault_hook

    home, name = sys.argv[1:]
    pixeltable = Path(os.environ["PIXELTABLE_HOME"])
    answer = {}

    def interrupted(what, run, after_seconds=0.5):
        key = threading.Timer(after_seconds, os.kill, (os.getpid(), signal.SIGINT))
        pressed = time.monotonic() + after_seconds
        key.start()
        try:
            run()
            answer[what] = ["no error", 0.0]
            time.sleep(60)
        except KeyboardInterrupt:
            answer.setdefault(what, ["KeyboardInterrupt", time.monotonic() - pressed])

    def reopen(what):
        started = time.monotonic()
        with open_memory(home, name) as memory:
            answer["open after " + what] = [str(memory.count() - expected), time.monotonic() - started]

    memory = open_memory(home, name)
    memory.add_entries([{"content": "x", "embedding": vector(n)} for n in range(300)])
    memory.flush()
    expected = 301
    with suspended(pixeltable):  # nothing answers, nothing fails
        interrupted("get", lambda: memory.get_memory("x"))
        memory.add_entry("y", embedding=vector(1))
        interrupted("search", memory.search)
        interrupted("eventual search", lambda: memory.search(consistency="eventual"))
        interrupted("erase", lambda: memory.erase_memory("z"))
        interrupted("flush", memory.flush)
        interrupted("close", memory.close)
    reopen("close")
    with suspended(pixeltable):
        interrupted("open", lambda: open_memory(home, name))
    reopen("open")

    held = threading.Event()
    set_fault_hook(lambda point: held.wait() if point == "projector.apply.before" else None)
    interrupted("rebuild that stands still", lambda: open_memory(home, name, rebuild=True), 1.0)
    set_fault_hook(None)
    held.set()
    reopen("rebuild")

    def full(point):
        if point == "projector.apply.before":
            raise OSError(28, "No space left on device")
    set_fault_hook(full)
    interrupted("rebuild that is blocked", lambda: open_memory(home, name, rebuild=True), 1.0)
    set_fault_hook(None)
    reopen("blocked rebuild")

    memory = open_memory(home, name)
    set_fault_hook(full)
    memory.add_entry("y", embedding=vector(1))
    expected += 1
    interrupted("close that cannot drain", memory.close)
    set_fault_hook(None)
    reopen("close that cannot drain")
    print(json.dumps(answer))
"""


def test_ctrl_c_ends_every_wait_for_the_database(tmp_path: Path, store_name: str, fault_report: FaultReport) -> None:
    """While the server is suspended, or the projector blocked; and the store can be opened again afterwards."""
    with pixeltable_home() as pixeltable:
        done = run_script(KEYS, tmp_path, store_name, timeout_seconds=400, PIXELTABLE_HOME=str(pixeltable))
    answer = answer_of(done)
    fault_report.add("unbuildable_tables: Ctrl-C in a wait", len(answer))
    for what, (outcome, seconds) in answer.items():
        assert outcome == ("0" if what.startswith("open after") else "KeyboardInterrupt"), (what, answer)
        assert seconds < SOON_SECONDS, what


@pytest.mark.anyio
async def test_a_cancelled_read_ends_though_nothing_answers(tmp_path: Path, store_name: str) -> None:
    async with async_memory(tmp_path, store_name) as memory:
        await memory.add_entry("x", embedding=vector(1))
        await memory.flush()
        assert await memory.count() == 1
        with suspended(Path(os.environ["PIXELTABLE_HOME"])):
            started = time.monotonic()
            for _ in range(memory._options.reader_threads_max + 1):  # each leaves its thread to itself
                with anyio.move_on_after(0.1) as scope:
                    await memory.count()
                assert scope.cancelled_caught
            assert time.monotonic() - started < SOON_SECONDS
        assert await memory.count() == 1


# ---------------------------------------------------------------------------------------------------------- full disks

FULL = """
    import json, os, subprocess, sys, time
    from pathlib import Path
    from tests.harness.database_tools import stop_all
    from tests.harness.engine_tools import open_memory, vector
    from pixelmemory import PixelmemoryError, ProjectionUnavailableError, WaitTimeoutError

    home, name, disk = sys.argv[1], sys.argv[2], Path(os.environ["PIXELTABLE_HOME"])
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m,mode=755", "tmpfs", disk], check=True)
    memory = open_memory(home, name, wait_timeout_seconds=3.0)
    answer, ids, error = {}, [], None
    for _ in range(200):
        content = [{"content": os.urandom(20_000).hex(), "embedding": vector(n)} for n in range(50)]
        ids += memory.add_entries(content)
        try:
            memory.flush()
        except WaitTimeoutError as caught:
            error = str(caught)
            break
    answer["error"] = error
    answer["health"] = [memory.health().ok, str(memory.health().problems)]
    ids.append(memory.add_entry("writes go on", embedding=vector(1)))
    memory.close()

    started = time.monotonic()
    try:
        open_memory(home, name, rebuild=sys.argv[3] == "rebuild", wait_timeout_seconds=3.0).close()
        answer["open"] = ["no error", "", 0.0]  # what there is room for is visible, what is not waits
    except ProjectionUnavailableError as caught:
        answer["open"] = [type(caught).__name__, str(caught), time.monotonic() - started]
    again = {"rebuild": sys.argv[3] == "rebuild", "wait_timeout_seconds": 3.0}
    memory = open_memory(home, name, open_without_tables=True, **again)
    ids.append(memory.add_entry("and on", embedding=vector(1)))
    answer["red"] = [memory.health().ok, str(memory.health().problems)]

    subprocess.run(["mount", "-o", "remount,size=900m", disk], check=True)
    if memory._memory._engine._store.projection.is_missing:
        memory.close()
        memory = open_memory(home, name)
    memory.flush(timeout=100)
    found = {record["memory_id"] for record in memory.search(limit=100_000)}
    answer["lost"], answer["acknowledged"] = len(set(ids) - found), len(ids)
    answer["healthy"] = [memory.health().ok, str(memory.health().problems)]
    memory.close()
    stop_all(disk)
    subprocess.run(["umount", "-l", disk], check=True)
    print(json.dumps(answer))
"""


@needs_mounts
@pytest.mark.parametrize("form", ["as it is", "rebuild"] if LONG_FORM else ["rebuild"])
def test_a_full_disk_of_the_tables(tmp_path: Path, store_name: str, form: str, fault_report: FaultReport) -> None:
    """Errors and health say so, writes go on, an open ends; with room it recovers by itself."""
    with pixeltable_home() as pixeltable:
        command = ["unshare", "-m", sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path), store_name, form]
        environment = script_environment(PIXELTABLE_HOME=str(pixeltable))
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    answer = answer_of(done)
    fault_report.add("unbuildable_tables: disk of the tables full")
    fault_report.judge(Verdict(answer["acknowledged"], lost=answer["lost"]))
    assert "No space left" in str(answer["error"])
    assert not answer["health"][0]
    assert "No space left" in answer["health"][1]
    kind, message, seconds = answer["open"]
    if form == "rebuild" or kind != "no error":
        assert kind == "ProjectionUnavailableError"
        assert "No space left" in message
        assert seconds < 100
        assert not answer["red"][0]
        assert "No space left" in answer["red"][1]
    assert answer["lost"] == 0
    assert answer["healthy"] == [True, "()"]


# ------------------------------------------------------------------------------------------------------ many of them


@pytest.mark.usefixtures("no_faults")
def test_threads_that_wait_for_blocked_tables_all_end(
    tmp_path: Path, store_name: str, fault_report: FaultReport
) -> None:
    """Readers and a writer beyond the lag get an error each; nobody waits for ever."""
    outcomes: list[str] = []
    with open_memory(
        tmp_path, store_name, wait_timeout_seconds=0.5, lag_events_max=5, lag_timeout_seconds=0.5
    ) as memory:
        set_fault_hook(_refuse("projector.apply.before"))
        fault_report.add("unbuildable_tables: applies fail")

        def work(number: int) -> None:
            try:
                for n in range(10):
                    memory.add_entry(f"{number} {n}", embedding=vector(n)) if number % 2 else memory.flush()
                outcomes.append("no error")
            except Exception as error:  # noqa: BLE001 - looked at below
                outcomes.append(str(error))

        memory.add_entry("first", embedding=vector(0))
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        set_fault_hook(None)
        memory.flush(timeout=60)
    assert len(outcomes) == 8
    assert all("No space left on device" in outcome for outcome in outcomes), outcomes
