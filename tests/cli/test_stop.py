"""``pixelmemory stop`` with real servers, each of a Pixeltable home of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.harness.engine_tools import pixeltable_home, run_script, script_environment, start_script

OPEN_AND_CLOSE = """
    import sys
    from pixelmemory import Memory, Options

    with Memory("notes", embedding_config={"dimensions": 3}, options=Options(home=sys.argv[1], progress=False)) as mem:
        mem.add_entry("text", embedding=[1, 2, 3])
        print(mem.count(), flush=True)
        if len(sys.argv) > 2:
            sys.stdin.readline()
"""


def stop(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pixelmemory", "stop", *arguments],
        env=script_environment(PIXELTABLE_HOME=str(home)),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def server_of(home: Path) -> psutil.Process:
    return psutil.Process(int((home / "pgdata" / "postmaster.pid").read_text().split()[0]))


def has_ended(server: psutil.Process) -> bool:
    """Also where nobody has asked for its exit status yet, as in a container without an init."""
    return not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


def test_a_server_that_nobody_uses_is_stopped_and_the_next_open_starts_it(tmp_path: Path) -> None:
    with pixeltable_home() as home:
        done = stop(home)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "result       it was not running")
        assert not home.exists(), "a home that is not there is not made"

        assert run_script(OPEN_AND_CLOSE, tmp_path, PIXELTABLE_HOME=str(home)).returncode == 0
        server = server_of(home)
        done = stop(home)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"database     {home / 'pgdata'}\nresult       stopped\n"
        assert has_ended(server)
        assert not (home / "pgdata" / "postmaster.pid").exists(), "it was shut down, not killed"
        assert stop(home).stdout.endswith("it was not running\n")

        again = run_script(OPEN_AND_CLOSE, tmp_path, PIXELTABLE_HOME=str(home))
        assert again.stdout.split() == ["2"], again.stderr


def test_one_that_others_use_goes_on_unless_forced(tmp_path: Path) -> None:
    with pixeltable_home() as home:
        assert run_script(OPEN_AND_CLOSE, tmp_path, PIXELTABLE_HOME=str(home)).returncode == 0
        server = server_of(home)
        uri = f"postgresql://postgres@/postgres?host={(home / 'pgdata' / 'postmaster.pid').read_text().splitlines()[4]}"
        with contextlib.closing(psycopg.connect(uri, application_name="reports", autocommit=True)) as other:
            done = stop(home)
            assert (done.returncode, done.stderr) == (1, "")
            assert "connected    reports (1 connection)\nresult       still running" in done.stdout
            assert server.is_running()
            assert other.execute("SELECT 1").fetchone() == (1,)
            done = stop(home, "--force")
            assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "result       stopped")
            assert has_ended(server)


def test_an_open_store_keeps_it(tmp_path: Path) -> None:
    with pixeltable_home() as home, start_script(OPEN_AND_CLOSE, tmp_path, "wait", PIXELTABLE_HOME=str(home)) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "1\n"
        done = stop(home)
        assert done.returncode == 1, done.stdout + done.stderr
        assert server_of(home).is_running()
        owner.kill()


def test_another_process_with_the_number_in_the_pid_file_is_left_alone(tmp_path: Path) -> None:
    home = tmp_path / "pixeltable"
    (home / "pgdata").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        lines = [bystander.pid, home / "pgdata", 1, 5432, home / "pgdata"]
        (home / "pgdata" / "postmaster.pid").write_text("".join(f"{line}\n" for line in lines))
        done = stop(home, "--force")
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "result       it was not running")
        assert bystander.poll() is None
        bystander.communicate(b"\n", timeout=60)


def test_a_database_of_the_users_own_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIXELTABLE_DB_CONNECT_STR", "postgresql://somewhere/else")
    done = stop(tmp_path)
    assert done.returncode == 2
    assert "PIXELTABLE_DB_CONNECT_STR" in done.stderr


# -------------------------------------------------------------------------------------------- Options.stop_database

STOP_AT_CLOSE = """
    import sys, threading
    from pathlib import Path
    import psutil
    from pixelmemory import Memory, Options

    home, pixeltable = sys.argv[1], Path(sys.argv[2])

    def opened(name, stop=True):
        options = Options(home=home, progress=False, stop_database=stop)
        return Memory(name, embedding_config={"dimensions": 3}, options=options)

    def added(mem):
        mem.add_entry("text", embedding=[1, 2, 3])
        mem.flush()
        return mem.count(consistency="eventual")

    def runs():
        path = pixeltable / "pgdata" / "postmaster.pid"
        return path.exists() and psutil.pid_exists(int(path.read_text().split()[0]))
"""

ONE_STORE = """
    for n in range(3):
        mem = opened("notes")
        assert runs()
        print(added(mem), flush=True)
        mem.close()
        print(runs(), flush=True)
"""

TWO_STORES = """
    first, second = opened("first"), opened("second", stop=False)
    first.close()
    print(runs(), added(second), flush=True)
    first = opened("first")
    second.close()
    print(runs(), added(first), flush=True)
    first.close()
    print(runs(), flush=True)
"""

AT_ONCE = """
    def live(name):
        for n in range(4):
            with opened(name) as mem:
                print(added(mem) == n + 1, flush=True)

    threads = [threading.Thread(target=live, args=[f"store{n}"]) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(runs(), flush=True)
"""


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (ONE_STORE, ["1", "False", "2", "False", "3", "False"]),
        (TWO_STORES, ["True", "1", "True", "1", "False"]),
        (AT_ONCE, ["True"] * 12 + ["False"]),
    ],
    ids=["one store", "two stores", "stores that open while others close"],
)
def test_the_last_close_stops_it_where_the_option_says_so(tmp_path: Path, script: str, expected: list[str]) -> None:
    with pixeltable_home() as home:
        done = run_script(STOP_AT_CLOSE + script, tmp_path, home, PIXELTABLE_HOME=str(home))
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == expected, done.stderr
        assert "not stopped" not in done.stderr


def test_a_close_leaves_it_to_another_process(tmp_path: Path) -> None:
    with pixeltable_home() as home, start_script(OPEN_AND_CLOSE, tmp_path, "wait", PIXELTABLE_HOME=str(home)) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "1\n"
        done = run_script(STOP_AT_CLOSE + TWO_STORES, tmp_path / "others", home, PIXELTABLE_HOME=str(home))
        assert done.stdout.split() == ["True", "1", "True", "1", "True"], done.stderr
        owner.communicate("\n", timeout=400)
        assert owner.returncode == 0
