"""The embedded PostgreSQL is killed while the store works: writes are acknowledged, health tells, all comes back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.harness.engine_oracle import check_store
from tests.harness.engine_tools import answer_of, open_memory, pixeltable_home, run_script, vector
from tests.harness.fault_report import FaultReport, Verdict, timed_rounds
from tests.harness.refusals import refuse_with

SCRIPT = """
    import json, os, signal, sys, threading, time
    from pathlib import Path
    from tests.harness.engine_oracle import check_store
    from tests.harness.engine_tools import open_memory, vector
    from pixelmemory import ProjectionUnavailableError
    from pixelmemory.faults import set_fault_hook

    home, name, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])

    def server_pid():
        return int((Path(os.environ["PIXELTABLE_HOME"]) / "pgdata" / "postmaster.pid").read_text().splitlines()[0])

    def kill_server():
        try:
            os.kill(server_pid(), signal.SIGKILL)
        except (ProcessLookupError, FileNotFoundError):
            return False
        return True

    memory = open_memory(home, name, retry_seconds_min=0.3, lag_events_max=1_000_000)
    memory.add_entry("seen", memory_id="seen", embedding=vector(0))
    memory.flush()
    acknowledged, errors, stop = [], [], threading.Event()

    def write(number):
        n = 0
        try:
            while not stop.is_set():
                n += 1
                acknowledged.append(memory.add_entry(f"{number} {n}", f"namespace {number}", embedding=vector(n)))
                time.sleep(0.002)
        except BaseException as error:
            errors.append(f"write: {error!r}")

    reads = {"answered": 0, "unavailable": 0}

    def read():
        try:
            while not stop.is_set():
                try:
                    record = memory.get_memory("seen", consistency="eventual")
                    assert record is not None and record["content"] == "seen"
                    assert memory.search(vector=vector(0), consistency="eventual")[0]["memory_id"] == "seen"
                    reads["answered"] += 1
                except ProjectionUnavailableError:  # for the moment it takes to start the server again
                    reads["unavailable"] += 1
                time.sleep(0.01)
        except BaseException as error:
            errors.append(f"read: {error!r}")

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)] + [threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    reasons, killed = set(), 0

    def kill_after_commit(point):  # before the projector asks the database anything about the new table
        if point == "projector.apply.after":
            set_fault_hook(None)
            kill_server()

    set_fault_hook(kill_after_commit)
    acknowledged.append(memory.add_entry("in a new table", "new", embedding=vector(1)))
    deadline = time.monotonic() + 100
    while killed < kills and time.monotonic() < deadline:
        time.sleep(0.3)
        if not kill_server():
            continue
        killed += 1
        before = len(acknowledged)
        while time.monotonic() < deadline:  # red, and later green again, while writes are acknowledged
            health = memory.health()
            reasons |= set(health.problems)
            if health.ok and reasons and len(acknowledged) > before + 20:
                break
            time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    kill_server()  # once more, with nobody at work: reads bring it back
    answered = False
    while not answered and time.monotonic() < deadline:
        try:
            answered = memory.get_memory("seen", consistency="eventual") is not None
        except ProjectionUnavailableError:
            time.sleep(0.05)
    lsn = memory.flush()
    expected = check_store(Path(home), name)
    lost = set(acknowledged) - {memory_id for _, memory_id in expected}
    print(json.dumps({
        "killed": killed,
        "red": any("the database failed and is tried again" in reason for reason in reasons),
        "healthy": memory.health().ok,
        "errors": errors,
        "lost": len(lost),
        "acknowledged": len(acknowledged),
        "all durable": lsn == len(acknowledged) + 1,
        "answered at the end": answered,
        "reads": reads,
        "visible": memory.count(),
    }))
    memory.close()
"""


def test_a_killed_server_comes_back(tmp_path: Path, store_name: str, fault_report: FaultReport) -> None:
    for number in timed_rounds("database", 1):
        _kill_the_server(2, tmp_path / str(number), store_name, fault_report)


def _kill_the_server(kills: int, home: Path, store_name: str, fault_report: FaultReport) -> None:
    with pixeltable_home() as pixeltable:
        done = run_script(SCRIPT, home, store_name, kills, timeout_seconds=400, PIXELTABLE_HOME=str(pixeltable))
    answer = answer_of(done)
    fault_report.add("projection_crash: SIGKILL of the database", answer["killed"] + 1)
    fault_report.judge(Verdict(answer["acknowledged"], lost=answer["lost"]))
    reads = answer.pop("reads")
    assert reads["answered"] > 0
    acknowledged = answer.pop("acknowledged")
    assert acknowledged > 50
    assert answer == {
        "killed": kills,
        "red": True,
        "healthy": True,
        "errors": [],
        "lost": 0,
        "all durable": True,
        "answered at the end": True,
        "visible": acknowledged + 1,
    }


CLAIM_SCRIPT = """
    import hashlib, json, os, signal, sys
    from pathlib import Path
    import psycopg
    from tests.harness.engine_tools import open_memory, tables_path, vector, with_pixeltable
    from pixelmemory.projection.pixeltable.startup import connection_string

    home, name = sys.argv[1:]
    memory = open_memory(home, name, retry_seconds_min=0.05)
    memory.add_entry("before", embedding=vector(1))
    assert memory.count() == 1  # leaves a connection that dies with the server, and that the last read does not mind
    pid_file = Path(os.environ["PIXELTABLE_HOME"]) / "pgdata" / "postmaster.pid"
    os.kill(int(pid_file.read_text().splitlines()[0]), signal.SIGKILL)
    memory.add_entry("after", embedding=vector(2))
    memory.flush()
    digest = hashlib.blake2b(with_pixeltable(lambda: tables_path(name)).encode(), digest_size=8).digest()
    with psycopg.connect(connection_string(), autocommit=True) as session:
        query = "SELECT pg_try_advisory_lock(%s)", (int.from_bytes(digest, "big", signed=True),)
        is_free = session.execute(*query).fetchone()[0]
        count = memory.count()
        memory.close()
        print(json.dumps([is_free, count, session.execute(*query).fetchone()[0]]))
"""


def test_the_claim_on_a_projection_outlives_a_restart_of_the_server(tmp_path: Path, store_name: str) -> None:
    """Else another process that opens the same tables would write over it."""
    with pixeltable_home() as pixeltable:
        done = run_script(CLAIM_SCRIPT, tmp_path, store_name, PIXELTABLE_HOME=str(pixeltable))
    assert answer_of(done) == [False, 2, True]


SUSPENDED_SCRIPT = """
    import json, os, signal, sys, threading
    from pathlib import Path
    import psutil
    from tests.harness.engine_tools import open_memory, vector
    from pixelmemory import ProjectionUnavailableError

    home, name = sys.argv[1:]
    memory = open_memory(home, name, read_timeout_seconds=1.0)
    memory.add_entry("seen", memory_id="seen", embedding=vector(1))
    memory.flush()
    assert memory.count() == 1
    pid_file = Path(os.environ["PIXELTABLE_HOME"]) / "pgdata" / "postmaster.pid"
    server = psutil.Process(int(pid_file.read_text().splitlines()[0]))
    suspended = [server, *server.children()]

    def give_up():  # a read that does not end would keep the test, and the server, for ever
        for process in suspended:
            process.resume()
        os._exit(3)

    watchdog = threading.Timer(40, give_up)
    watchdog.daemon = True
    watchdog.start()
    for process in suspended:
        process.suspend()
    answers = []
    try:
        for read in (memory.count, memory.search, lambda: memory.get_memory("seen"), memory.namespaces):
            try:
                answers.append(read())
            except ProjectionUnavailableError as error:
                answers.append("has not ended within 1 s" in str(error))
    finally:
        for process in suspended:
            process.resume()
    watchdog.cancel()
    memory.flush()
    print(json.dumps([answers, memory.count()]))
    memory.close()
"""


def test_a_read_that_the_database_does_not_answer_ends(tmp_path: Path, store_name: str) -> None:
    with pixeltable_home() as pixeltable:
        done = run_script(SUSPENDED_SCRIPT, tmp_path, store_name, PIXELTABLE_HOME=str(pixeltable))
    assert answer_of(done) == [[True] * 4, 1]


#: disk full, out of memory, too many connections, I/O error, serialization, lock not available, cancelled, shut down
INFRASTRUCTURE = ("53100", "53200", "53300", "58030", "40001", "55P03", "57014", "57P01", "XX000", "08006")


@pytest.mark.parametrize("direct_sql", [True, False], ids=["default", "public API"])
def test_what_ails_the_database_is_no_fault_of_the_events(
    tmp_path: Path, store_name: str, direct_sql: bool, fault_report: FaultReport
) -> None:
    """Each of PostgreSQL's errors that says nothing about a row: tried again until it is over, and no dead letter."""
    with open_memory(tmp_path, store_name, retry_seconds_min=0.01, direct_sql=direct_sql) as memory:
        memory.add_entry("the table exists", embedding=vector(0))
        memory.flush()
        for number, sqlstate in enumerate(INFRASTRUCTURE):
            with refuse_with(store_name, sqlstate):
                memory.add_entries([{"content": f"{number} {n}", "embedding": vector(n)} for n in range(3)])
                deadline = time.monotonic() + 60
                while memory.health().ok and time.monotonic() < deadline:
                    time.sleep(0.005)
                problems = memory.health().problems
                assert any("the database failed and is tried again" in problem for problem in problems), sqlstate
            memory.flush()
            assert memory.health().ok
            assert memory.stats().dead_letters == 0
        assert len(check_store(tmp_path, store_name)) == 1 + 3 * len(INFRASTRUCTURE)
    fault_report.add("projection_crash: error of the database", len(INFRASTRUCTURE))
