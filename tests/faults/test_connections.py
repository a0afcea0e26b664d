"""connections: bounded, shared by the stores of a process, let go when idle; where none is left, an error says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pixelmemory import ProjectionUnavailableError
from pixelmemory.projection.pixeltable.startup import connection_string
from pixelmemory.projection.sql.session import ReadConnections, shared
from tests.harness.database_tools import wait_until
from tests.harness.engine_tools import answer_of, open_memory, pixeltable_home, run_script, start_script, vector
from tests.harness.fault_report import LONG_FORM, FaultReport

#: stores in one process, and processes on one Pixeltable; each of either costs its time
STORES, PROCESSES = (100, 20) if LONG_FORM else (20, 2)


@pytest.fixture
def oracle(tmp_path: Path, store_name: str) -> Iterator[psycopg.Connection[Any]]:
    """A session of the test's own, which counts the others."""
    open_memory(tmp_path / "first", store_name).close()
    with psycopg.connect(connection_string(), autocommit=True, application_name="oracle") as connection:
        yield connection


def _sessions(oracle: psycopg.Connection[Any]) -> list[str]:
    """The names of the clients' sessions on the run's server but the oracle's."""
    rows = oracle.execute(
        "SELECT application_name FROM pg_stat_activity WHERE backend_type = 'client backend' "
        "AND application_name NOT IN ('oracle', '')"  # nor those of other tests
    )
    return sorted(str(name) for (name,) in rows)


def test_many_stores_in_one_process(
    tmp_path: Path, store_name: str, oracle: psycopg.Connection[Any], fault_report: FaultReport
) -> None:
    """Open at once, each written and searched; they share one claim's session and a few others."""
    with ExitStack() as stack:
        stores = [
            stack.enter_context(open_memory(tmp_path, f"{store_name}_{number}", connections_max=4))
            for number in range(STORES)
        ]
        for number, memory in enumerate(stores):
            memory.add_entry("x", embedding=vector(number))
            memory.flush()
        assert [memory.count() for memory in stores] == [1] * STORES
        assert len(_sessions(oracle)) <= 1 + 4 + 4 + STORES // 4
        fault_report.add("connections: stores in one process", STORES)


def test_idle_connections_are_let_go(tmp_path: Path, store_name: str, oracle: psycopg.Connection[Any]) -> None:
    """What is left of an open store is the session of its claim."""
    with open_memory(tmp_path, store_name, connection_idle_seconds=0.3) as memory:
        memory.add_entry("x", embedding=vector(1))
        memory.flush()
        threads = [threading.Thread(target=memory.search) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(_sessions(oracle)) > 1
        deadline = time.monotonic() + 60
        while len(left := _sessions(oracle)) > 1:
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        assert left[0].startswith("pixelmemory ")
        assert memory.count() == 1  # and they come back


def test_connections_are_bounded_under_many_threads(
    tmp_path: Path, store_name: str, oracle: psycopg.Connection[Any], fault_report: FaultReport
) -> None:
    """Forty readers of four stores use two connections at most, whoever asks, and all are answered."""
    peak, answered, stop = [0], [0], threading.Event()
    with ExitStack() as stack:
        stores = [
            stack.enter_context(open_memory(tmp_path, f"{store_name}_{n}", connections_max=2, reader_threads_max=10))
            for n in range(4)
        ]
        for memory in stores:
            memory.add_entry("x", embedding=vector(1))
            memory.flush()

        shared.forget_idle()  # of other tests, which had a higher limit
        wait_until(lambda: "pixelmemory" not in _sessions(oracle))

        def read(number: int) -> None:
            for _ in range(5):
                assert stores[number % 4].count() == 1
                answered[0] += 1

        def watch() -> None:
            while not stop.is_set():
                peak[0] = max(peak[0], shared.stats()[0], _sessions(oracle).count("pixelmemory"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        threads = [threading.Thread(target=read, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        watcher.join()
    fault_report.add("connections: threads that read", 40)
    assert answered == [200]
    assert 1 <= peak[0] <= 2


def test_a_turn_that_does_not_come_is_an_error_that_says_what_to_do() -> None:
    pool = ReadConnections()
    with (
        pool.connection(connection_string(), lambda _connection: None, size_max=1, timeout_seconds=1),
        pytest.raises(ProjectionUnavailableError, match=r"Options\.connections_max"),
        pool.connection(connection_string(), lambda _connection: None, size_max=1, timeout_seconds=0.1),
    ):
        pass
    with pool.connection(connection_string(), lambda _connection: None, size_max=1, timeout_seconds=1) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    pool.forget_idle()
    assert pool.stats() == (0, 0)


def test_a_block_that_fails_gives_its_turn_back() -> None:
    pool = ReadConnections()
    for _ in range(5):
        with (
            pytest.raises(psycopg.Error),
            pool.connection(connection_string(), lambda _c: None, size_max=1, timeout_seconds=1) as connection,
        ):
            connection.execute("SELECT no_such_column")

    def fail(_connection: psycopg.Connection[Any]) -> None:
        raise ZeroDivisionError

    for _ in range(5):
        with (
            pytest.raises(ZeroDivisionError),
            pool.connection(connection_string(), fail, size_max=1, timeout_seconds=1),
        ):
            pass
    assert pool.stats() == (0, 0)


EXHAUSTED = """
    import json, os, sys, threading, time
    from pathlib import Path
    import psycopg
    from tests.harness.engine_tools import open_memory, stop_server, vector
    from pixelmemory import ProjectionUnavailableError

    home, name = sys.argv[1:]
    pixeltable = Path(os.environ["PIXELTABLE_HOME"])
    open_memory(home, name).close()
    stop_server(pixeltable)
    conf = pixeltable / "pgdata" / "postgresql.conf"
    # superusers may use those that are reserved; ours is one
    conf.write_text(conf.read_text() + "\\nmax_connections = 12\\nsuperuser_reserved_connections = 0\\n")
    few = {"database_timeout_seconds": 2.0, "retry_seconds_min": 0.05, "retry_seconds_max": 0.2}
    memory = open_memory(home, name, wait_timeout_seconds=2.0, **few)
    memory.add_entry("before", embedding=vector(1))
    memory.flush()
    assert memory.count() == 1
    from pixelmemory.projection.pixeltable.startup import connection_string
    from pixelmemory.projection.sql.session import shared
    taken = []
    def take_all():
        while True:
            try:
                taken.append(psycopg.connect(connection_string()))
            except psycopg.OperationalError:
                return
    take_all()
    shared.forget_idle()  # as idleness would
    from pixeltable.env import Env
    Env.get().engine.dispose()
    time.sleep(0.3)
    take_all()
    answer = {"taken": len(taken)}

    def outcome(run):
        started = time.monotonic()
        try:
            result = ["no error", str(run())]
        except ProjectionUnavailableError as error:
            result = [type(error).__name__, str(error)]
        except Exception as error:
            result = [type(error).__name__, str(error)]
        return [*result, time.monotonic() - started]

    answer["read"] = outcome(lambda: memory.count(consistency="eventual"))
    answer["open"] = outcome(lambda: open_memory(home, name + "_2", **few))
    ids = [memory.add_entry("meanwhile", embedding=vector(2))]  # writes go on
    deadline = time.monotonic() + 30
    while memory.health().ok and time.monotonic() < deadline:
        time.sleep(0.05)
    answer["health"] = [memory.health().ok, str(memory.health().problems)]
    for connection in taken:
        connection.close()
    memory.flush(timeout=60)
    answer["healed"] = [memory.health().ok, memory.count()]
    with open_memory(home, name + "_2", **few) as second:
        answer["second"] = second.count()
    memory.close()
    print(json.dumps(answer))
"""


def test_exhaustion_is_an_error_that_says_what_to_do_and_heals(
    tmp_path: Path, store_name: str, fault_report: FaultReport
) -> None:
    with pixeltable_home() as pixeltable:
        done = run_script(EXHAUSTED, tmp_path, store_name, timeout_seconds=400, PIXELTABLE_HOME=str(pixeltable))
    answer = answer_of(done)
    fault_report.add("connections: none left")
    assert 5 < answer["taken"] <= 12
    for call in ("read", "open"):
        kind, message, seconds = answer[call]
        assert kind == "ProjectionUnavailableError", answer[call]
        assert "max_connections" in message, message
        assert seconds < 40
    assert not answer["health"][0]
    assert "too many clients" in answer["health"][1] or "max_connections" in answer["health"][1]
    assert answer["healed"] == [True, 2]
    assert answer["second"] == 0


ONE_OF_MANY = """
    import json, sys
    from tests.harness.engine_tools import open_memory, vector
    home, name = sys.argv[1:]
    with open_memory(home, name) as memory:
        memory.add_entries([{"content": str(n), "embedding": vector(n)} for n in range(100)])
        print(memory.count(), flush=True)
        sys.stdin.read()  # all are open at once
        print(json.dumps(memory.count()))
"""


def test_many_processes_on_one_pixeltable(tmp_path: Path, store_name: str, fault_report: FaultReport) -> None:
    with open_memory(tmp_path, store_name):
        processes = [start_script(ONE_OF_MANY, tmp_path, f"{store_name}_{n}") for n in range(PROCESSES)]
        try:
            lines = [process.stdout.readline() for process in processes]
            ends = [process.communicate(timeout=400) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
    fault_report.add("connections: processes on one Pixeltable", PROCESSES)
    assert lines == ["100\n"] * PROCESSES, [err[-500:] for _, err in ends]
    assert [out for out, _ in ends] == ["100\n"] * PROCESSES
