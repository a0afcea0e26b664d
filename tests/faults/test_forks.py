"""fork_pixeltable: children of a process that has started Pixeltable are refused, and the parent is never disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness.database_tools import wait_until
from tests.harness.engine_tools import answer_of, open_memory, run_script, script_environment, start_script
from tests.harness.fault_report import LONG_FORM, FaultReport, Verdict, timed_rounds

# ------------------------------------------------------------------------------------------- forks of our own making

#: forks in one round, each with its way to end
ENDS = ("_exit", "exit", "exception", "SIGKILL")

FORKS = """
    import faulthandler, gc, json, multiprocessing, os, random, signal, sys, threading, time, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks where threads run
    import psycopg
    from tests.harness.engine_tools import GIVEN, open_memory, options_at, vector
    from pixelmemory import Memory, StoreForkedError, StoreLockedError

    home, name, state, way, rounds = *sys.argv[1:5], int(sys.argv[5])
    memory = open_memory(home, name, connection_idle_seconds=600.0)
    acknowledged = memory.add_entries([{"content": str(n), "embedding": vector(n)} for n in range(50)])
    memory.flush()
    from pixelmemory.projection.pixeltable.startup import connection_string
    admin = psycopg.connect(connection_string(), autocommit=True, application_name="oracle")

    def sessions():
        rows = admin.execute(
            "SELECT pid, application_name FROM pg_stat_activity WHERE backend_type = 'client backend' "
            "AND application_name <> 'oracle' AND (application_name LIKE %s OR application_name = 'pixelmemory')",
            (f"%{os.getpid()}%",))
        return set(rows)

    def claim():
        return admin.execute("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted").fetchall()

    def in_child(end):
        global memory
        faulthandler.dump_traceback_later(30)  # where it hangs
        seen = {}
        for what, use in {
            "count": memory.count, "add": lambda: memory.add_entry("no", embedding=vector(1)),
            "open": lambda: Memory(f"mine_{os.getpid()}", None, GIVEN, options=options_at(home)),
            "open again": lambda: open_memory(home, name),
        }.items():
            try:
                use()
                seen[what] = "no error"
            except StoreForkedError as error:
                seen[what] = "refused" if "fork" in str(error) else str(error)
            except StoreLockedError as error:
                seen[what] = "locked" if str(os.getppid()) in str(error) else str(error)
            except BaseException as error:
                seen[what] = repr(error)
        memory.close()
        del memory
        gc.collect()
        os.write(writing, (json.dumps([end, random.random(), seen]) + "\\n").encode())
        if end == "_exit":
            os._exit(0)
        if end == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "exception":
            raise ZeroDivisionError("the child's own")
        sys.exit(0)

    def fork(end):
        if way == "multiprocessing":
            process = multiprocessing.get_context("fork").Process(target=in_child, args=(end,))
            process.start()
            return process.pid
        pid = os.fork()
        if pid == 0:
            in_child(end)
        return pid

    stop, errors = threading.Event(), []
    done = {"writes": 0, "searches": 0}

    def write(number):
        try:
            while not stop.is_set():
                acknowledged.append(memory.add_entry(f"{number}", embedding=vector(number)))
                done["writes"] += 1
                time.sleep(0.003)
        except BaseException as error:
            errors.append(repr(error))

    def search():
        try:
            while not stop.is_set():
                assert memory.search(vector=vector(1), limit=3, consistency="eventual")
                done["searches"] += 1
        except BaseException as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(2)] + [threading.Thread(target=search)]
    if state == "busy":
        for thread in threads:
            thread.start()
        while done["searches"] < 5:
            time.sleep(0.01)
    memory.search(vector=vector(1))
    before, claimed = sessions(), claim()
    reading, writing = os.pipe()
    hung, statuses = [], {}
    for _ in range(rounds):
        children = {fork(end): end for end in ("_exit", "exit", "exception", "SIGKILL")}
        deadline = time.monotonic() + 180
        while children:
            for pid, end in list(children.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    del children[pid]
                    statuses.setdefault(end, set()).add(os.waitstatus_to_exitcode(status))
                elif time.monotonic() > deadline:
                    hung.append(end)
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
    gone = sorted(before - sessions()) + sorted(set(claimed) - set(claim()))
    counted = dict(done)
    if state == "busy":
        deadline = time.monotonic() + 180
        while done["searches"] < counted["searches"] + 5 and not errors and time.monotonic() < deadline:
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join()
    os.close(writing)
    acknowledged.append(memory.add_entry("after", embedding=vector(1)))
    found = {record["memory_id"] for record in memory.search(limit=1_000_000)}
    reports = [json.loads(line) for line in os.fdopen(reading)]
    health = list(memory.health())
    memory.close()
    print(json.dumps({
        "lost": len(set(acknowledged) - found), "more": len(found - set(acknowledged)),
        "acknowledged": len(acknowledged), "gone": gone, "claims": len(claimed), "hung": hung,
        "errors": errors, "health": health, "reports": reports,
        "statuses": {end: sorted(found) for end, found in statuses.items()},
    }))
"""

WAYS = (("os.fork", "idle"), ("os.fork", "busy"), ("multiprocessing", "busy"), ("multiprocessing", "idle"))


@pytest.mark.parametrize(("way", "state"), WAYS if LONG_FORM else WAYS[1:4:2])
def test_children_are_refused_and_the_parent_is_not_disturbed(
    tmp_path: Path, store_name: str, way: str, state: str, fault_report: FaultReport
) -> None:
    """Four ends at a time, each as often as there are rounds."""
    rounds = 5 if LONG_FORM else 2
    for number in timed_rounds("forks", 1, tests=len(WAYS)):
        done = run_script(FORKS, tmp_path / str(number), store_name, state, way, rounds, timeout_seconds=400)
        answer = answer_of(done)
        fault_report.add(f"fork_pixeltable: {way}, {state}", 4 * rounds)
        fault_report.judge(Verdict(answer["acknowledged"], lost=answer["lost"], silent_changes=answer["more"]))
        assert answer["hung"] == [], done.stderr[-8000:]
        assert answer["errors"] == []
        assert answer["health"] == [True, []]
        assert answer["gone"] == []
        assert answer["claims"] >= 1
        assert (answer["lost"], answer["more"]) == (0, 0)
        refused = {"count": "refused", "add": "refused", "open": "refused", "open again": "locked"}
        assert sorted(end for end, _, _ in answer["reports"]) == sorted(ENDS * rounds)
        assert [seen for _, _, seen in answer["reports"]] == [refused] * 4 * rounds
        assert answer["statuses"] == {"_exit": [0], "exit": [0], "exception": [1], "SIGKILL": [-9]}


LOGGING = """
    import logging, os, signal, sys, threading, time, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    from pathlib import Path
    from tests.harness.engine_tools import open_memory

    memory = open_memory(*sys.argv[1:3])
    loggers = [logging.root, *logging.Logger.manager.loggerDict.values()]
    handlers = [each for logger in loggers for each in getattr(logger, "handlers", ())]
    logs = [each for each in handlers if isinstance(each, logging.FileHandler)]
    assert logs

    def write(stream):
        while True:
            stream.write("x" * 10_000)
            stream.flush()
            stream.seek(0)

    threading.Thread(target=write, args=(logs[0].stream,), daemon=True).start()
    hung = 0
    for _ in range(5):
        child = os.fork()
        if child == 0:
            sys.exit(0)
        deadline = time.monotonic() + 30
        while not os.waitpid(child, os.WNOHANG)[0]:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                hung += 1
                break
            time.sleep(0.01)
        if hung:
            break
    print(hung, flush=True)
    memory.close()
    os._exit(0)
"""


def test_a_child_ends_though_its_parent_was_writing_a_log(tmp_path: Path, store_name: str) -> None:
    done = run_script(LOGGING, tmp_path, store_name)
    assert done.stdout == "0\n", done.stderr


ORPHAN = """
    import os, subprocess, sys, time, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    from tests.harness.engine_tools import open_memory, vector
    home, name, kind = sys.argv[1:]
    memory = open_memory(home, name)
    memory.add_entry("acknowledged", embedding=vector(1))
    memory.search()
    if kind == "a program":
        child = subprocess.Popen(["sleep", "100"], close_fds=False).pid
    else:
        child = os.fork()
        if child == 0:
            time.sleep(100)  # and touches nothing
            os._exit(0)
    print(child, flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("kind", ["a fork", "a program"])
def test_a_child_that_outlives_a_killed_parent_keeps_nothing(
    tmp_path: Path, store_name: str, kind: str, fault_report: FaultReport
) -> None:
    """No lock of a file, no session of the database: the next process opens the store at once."""
    with start_script(ORPHAN, tmp_path, store_name, kind) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        fault_report.add("fork_pixeltable: parent killed, child lives")
        try:
            with open_memory(tmp_path, store_name) as memory:
                assert psutil.pid_exists(child)
                found = memory.count()
        finally:
            os.kill(child, signal.SIGKILL)
    fault_report.judge(Verdict(1, lost=1 - found))
    assert found == 1


IDS = """
    import json, multiprocessing, os, sys, time
    import pixelmemory, pixelmemory.memory.values
    from tests.harness.engine_tools import open_memory, vector
    home, name = sys.argv[1:]

    def work(store, answers):
        with open_memory(home, store) as memory:
            ids = memory.add_entries([{"content": "x", "embedding": vector(1)}] * 300)
            answers.put([ids, memory.count()])

    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=work, args=(f"{name}_{n}", answers)) for n in range(2)]
    for child in children:
        child.start()
    with open_memory(home, f"{name}_parent") as memory:  # at the same moment
        ids = memory.add_entries([{"content": "x", "embedding": vector(1)}] * 300)
        counts = [memory.count()]
    for child in children:
        more, count = answers.get(timeout=400)
        ids += more
        counts.append(count)
    for child in children:
        child.join(60)
    print(json.dumps([len(ids), len(set(ids)), counts, [child.exitcode for child in children]]))
"""


def test_children_of_a_parent_that_only_imported_work(
    tmp_path: Path, store_name: str, fault_report: FaultReport
) -> None:
    """And make other ids than their parent and each other: no random state is shared."""
    answer = answer_of(run_script(IDS, tmp_path, store_name, timeout_seconds=400))
    fault_report.add("fork_pixeltable: fork before the start", 2)
    assert answer == [900, 900, [300] * 3, [0, 0]]


# ------------------------------------------------------------------------------------------------------------ gunicorn

APP = """
    import json, os
    import pixelmemory
    from tests.harness.engine_tools import open_memory, vector

    HOME, NAME, WARM = (os.environ[name] for name in ("APP_HOME", "APP_NAME", "APP_WARM"))
    if WARM == "warm":  # in the master: gunicorn --preload, or the import of Celery's application
        open_memory(HOME, NAME).close()
    opened = {}

    def work():
        pid = os.getpid()
        if pid not in opened:
            opened[pid] = open_memory(HOME, f"{NAME}_{pid}")
        memory = opened[pid]
        memory_id = memory.add_entry("x", embedding=vector(1))
        return [pid, memory_id, memory.count()]

    def application(environ, start_response):
        try:
            status, answer = "200 OK", work()
        except pixelmemory.StoreForkedError as error:
            status, answer = "503 Service Unavailable", str(error)
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]
"""


@contextlib.contextmanager
def _gunicorn(folder: Path, name: str, warm: str, workers: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    pytest.importorskip("gunicorn")
    (folder / "forking_app.py").write_text(textwrap.dedent(APP))
    environment = script_environment(APP_HOME=str(folder), APP_NAME=name, APP_WARM=warm)
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment["PYTHONPATH"]])
    socket_path = folder / "app.sock"
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "gunicorn", "--preload", "--no-control-socket"]
    command += ["--workers", str(workers), "--timeout", "120", "--bind", f"unix:{socket_path}", "--chdir", str(folder)]
    with open(folder / "gunicorn.log", "w") as log:
        process = subprocess.Popen(
            [*command, "forking_app:application"], env=environment, stdout=log, stderr=subprocess.STDOUT, text=True
        )
    try:
        wait_until(lambda: socket_path.exists() or process.poll() is not None, 90)
        yield process, str(socket_path)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            for each in psutil.Process(process.pid).children(recursive=True):
                each.kill()
            process.kill()
            process.wait()
            raise


def _get(socket_path: str) -> tuple[int, Any]:
    """One request over the Unix socket."""
    import http.client
    import socket

    connection = http.client.HTTPConnection("localhost", timeout=400)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(90)
    connection.sock.connect(socket_path)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("warm", ["warm", "imported"])
def test_gunicorn_with_preload(tmp_path: Path, store_name: str, warm: str, fault_report: FaultReport) -> None:
    """Workers are killed and made again; where the master had a store open, each is refused with a sentence."""
    with _gunicorn(tmp_path, store_name, warm, workers=1) as (master, socket_path):
        pids, ids = set(), []
        for number in range(2):
            if number:
                for worker in psutil.Process(master.pid).children():
                    worker.kill()
            for _ in range(3):
                status, answer = _get_from_a_worker(socket_path)
                if warm == "warm":
                    assert status == 503
                    assert "was started in process" in answer
                    assert "--preload" in answer
                else:
                    assert status == 200, answer
                    pids.add(answer[0])
                    ids.append(answer[1])
        fault_report.add("fork_pixeltable: gunicorn worker", 2)
        if warm == "imported":
            assert len(pids) == 2
            assert len(set(ids)) == 6
        assert master.poll() is None
    if warm == "imported":
        found = 0
        for pid in pids:
            with open_memory(tmp_path, f"{store_name}_{pid}") as memory:
                found += memory.count()
        fault_report.judge(Verdict(6, lost=6 - found))
        assert found == 6


def _get_from_a_worker(socket_path: str) -> tuple[int, Any]:
    """As :func:`_get`, again where the worker was killed as it had accepted."""
    import http.client

    for _ in range(20):
        try:
            return _get(socket_path)
        except (http.client.HTTPException, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("no worker answers")


# -------------------------------------------------------------------------------------------------------------- Celery

TASKS = """
    import os
    from celery import Celery
    from forking_app import pixelmemory, work

    folder = os.environ["APP_HOME"]
    app = Celery("forking_tasks", broker="filesystem://", backend=f"file://{folder}/results")
    app.conf.broker_transport_options = {
        "data_folder_in": f"{folder}/queue",
        "data_folder_out": f"{folder}/queue",
        "control_folder": f"{folder}/control",
    }
    app.conf.worker_prefetch_multiplier = 1

    @app.task(name="work")
    def task():
        try:
            return work()
        except pixelmemory.StoreForkedError as error:
            return str(error)
"""


@pytest.mark.skipif(not LONG_FORM, reason="starts Celery, which takes long: the long form")
@pytest.mark.parametrize("warm", ["warm", "imported"])
def test_celery_prefork(tmp_path: Path, store_name: str, warm: str, fault_report: FaultReport) -> None:
    celery = pytest.importorskip("celery")
    for name in ("queue", "control", "results"):
        (tmp_path / name).mkdir()
    (tmp_path / "forking_app.py").write_text(textwrap.dedent(APP))
    (tmp_path / "forking_tasks.py").write_text(textwrap.dedent(TASKS))
    environment = script_environment(APP_HOME=str(tmp_path), APP_NAME=store_name, APP_WARM=warm)
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "forking_tasks",
        "worker",
        "--pool",
        "prefork",
        "--concurrency",
        "2",
    ]
    command += ["--max-tasks-per-child", "3", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    with open(tmp_path / "celery.log", "w") as log:
        worker = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    try:
        client = celery.Celery("client", broker="filesystem://", backend=f"file://{tmp_path}/results")
        client.conf.broker_transport_options = {
            "data_folder_in": f"{tmp_path}/queue",
            "data_folder_out": f"{tmp_path}/queue",
            "control_folder": f"{tmp_path}/control",
        }
        answers = [client.send_task("work") for _ in range(8)]
        results = [answer.get(timeout=400, interval=0.1) for answer in answers]
        assert worker.poll() is None
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            worker.wait(60)
        except subprocess.TimeoutExpired:
            for each in psutil.Process(worker.pid).children(recursive=True):
                each.kill()
            worker.kill()
            worker.wait()
            raise
    fault_report.add("fork_pixeltable: Celery task", len(results))
    if warm == "warm":
        assert all("was started in process" in result and "worker_process_init" in result for result in results)
    else:
        assert len({memory_id for _, memory_id, _ in results}) == len(results)
        assert len({pid for pid, _, _ in results}) > 1
