"""database_start: whatever lies in the way of the embedded PostgreSQL, it starts, or the error has its own reason."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import sqlalchemy as sql

from pixelmemory import ProjectionUnavailableError, StoreError
from pixelmemory.projection.pixeltable import server as server_module
from pixelmemory.projection.pixeltable.start_lock import locked_start
from pixelmemory.projection.pixeltable.startup import _prepare_home
from tests.harness.database_tools import (
    NOBODY,
    ask,
    can_run_programs,
    copy_cluster,
    database_folder,
    may_mount,
    pid_in,
    postgres_in,
    programs,
    server_in,
    stop_all,
    wait_until,
)
from tests.harness.engine_tools import answer_of, pixeltable_home, run_script, script_environment, start_script
from tests.harness.fault_report import LONG_FORM, FaultReport, timed_rounds

is_root = os.geteuid() == 0
needs_root = pytest.mark.skipif(not is_root, reason="changes users, as root can")

#: what a script needs to start a database in the home that it is given, and to say what came of it
START = """
    import json, os, sys
    from pathlib import Path
    from tests.harness.database_tools import as_user, ask, pid_in, server_in
    from pixelmemory import PixelmemoryError

    def start(home, timeout_seconds=30.0):
        try:
            server = server_in(Path(home), timeout_seconds)
            server.ensure_running()
            return ["started", ask(server, "SELECT current_user")]
        except PixelmemoryError as error:
            return [type(error).__name__, str(error)]
"""


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A home whose database was created and shut down."""
    with database_folder() as folder:
        home = folder / "home"
        home.mkdir()
        server_in(home).ensure_running()
        _shut_down(home)
        yield home


@pytest.fixture(scope="module")
def shared_home(template: Path) -> Iterator[Path]:
    with database_folder() as folder:
        yield copy_cluster(template, folder / "home")


@pytest.fixture
def home(shared_home: Path) -> Iterator[Path]:
    """A home with a database that does not run; one for all tests, as a copy takes a second."""
    yield shared_home
    if postgres_in(shared_home):
        _shut_down(shared_home)


def _shut_down(home: Path) -> None:
    os.kill(pid_in(home), signal.SIGINT)
    wait_until(lambda: not postgres_in(home))


def _starts(home: Path) -> int:
    """Start the database there, see it answer, and return its pid."""
    server = server_in(home)
    server.ensure_running()
    assert ask(server) == 1
    server.ensure_running()
    return pid_in(home)


# ------------------------------------------------------------------------------------------------------- pid files


@pytest.fixture
def others_process() -> Iterator[int]:
    """A living process of another user, where one can be made."""
    identity: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if is_root else {}
    with subprocess.Popen(["sleep", "600"], **identity) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def same_users_process(home: Path) -> Iterator[int]:
    """A living process of the user that the server runs as: PostgreSQL itself takes no other's for a server."""
    owner = (home / "pgdata").stat()
    identity: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if is_root else {}
    with subprocess.Popen(["sleep", "600"], **identity) as process:
        yield process.pid
        process.kill()


#: the first line that a stale pid file gets; of the server's user, our own process, another user's, none that can be
STALE = ("the same user's", "ours", "another user's", "parent", "1", "999999999", "-1", "0")


@pytest.mark.parametrize("whose", STALE if LONG_FORM else STALE[:3])
def test_a_stale_pid_file_whose_number_lives(
    home: Path, whose: str, same_users_process: int, others_process: int, fault_report: FaultReport
) -> None:
    """As after a power loss, or in a container that was started again."""
    killed = _starts(home)
    pid_file = home / "pgdata" / "postmaster.pid"
    sockets = Path(pid_file.read_text().splitlines()[4])  # elsewhere, where the path is long
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not postgres_in(home))
    living = {"the same user's": same_users_process, "another user's": others_process}
    number = (living | {"ours": os.getpid(), "parent": os.getppid()}).get(whose, whose)
    for path in (pid_file, sockets / ".s.PGSQL.5432.lock"):
        lines = path.read_text().splitlines()
        assert int(lines[0]) == killed
        path.write_text("\n".join([str(number), *lines[1:]]) + "\n")
    fault_report.add("database_start: stale pid file")
    assert _starts(home) != killed


TORN = {
    "empty": b"",
    "zeros": bytes(100),
    "a number": b"%d" % os.getpid(),
    "two lines": b"%d\n/somewhere\n" % os.getpid(),
    "no number": b"postgres\n\n\n\n\n",
    "not text": bytes(range(256)),
}


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_pid_file(home: Path, torn: str, fault_report: FaultReport) -> None:
    pid_file = home / "pgdata" / "postmaster.pid"
    pid_file.write_bytes(TORN[torn])
    if is_root:
        owner = (home / "pgdata").stat()
        os.chown(pid_file, owner.st_uid, owner.st_gid)
    fault_report.add("database_start: torn pid file")
    _starts(home)


def test_a_pid_file_that_is_deleted_under_a_running_server(home: Path, fault_report: FaultReport) -> None:
    """The server is shut down and started again; it is never run twice."""
    first = _starts(home)
    with psycopg.connect(server_in(home).get_uri(), autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS kept")
        connection.execute("CREATE TABLE kept AS SELECT 1")
    (home / "pgdata" / "postmaster.pid").unlink()
    fault_report.add("database_start: pid file deleted")
    second = _starts(home)
    assert second != first
    assert ask(server_in(home), "SELECT count(*) FROM kept") == 1
    assert [process.pid for process in postgres_in(home) if process.ppid() not in (second, first)] == [second]


# ------------------------------------------------------------------------------------------- a creation that was killed


@pytest.mark.parametrize("left", ["a folder of nobody's", "a folder", "a file", "a link"][: 4 if LONG_FORM else 1])
def test_what_a_killed_creation_left_behind(left: str, fault_report: FaultReport) -> None:
    with database_folder() as folder:
        home = folder / "home"
        rest = home / ".pgdata.new"
        home.mkdir()
        (home / "pgdata").mkdir()  # as Pixeltable leaves it
        if left == "a file":
            rest.write_text("x")
        elif left == "a link":
            (folder / "elsewhere").mkdir()
            (folder / "elsewhere" / "file").write_text("kept")
            rest.symlink_to(folder / "elsewhere")
        else:
            (rest / "base" / "1").mkdir(parents=True)
            (rest / "PG_VERSION").write_text("17\n")
            (rest / "base").chmod(0o000)
        if is_root and "nobody" in left:
            os.chown(rest, NOBODY, NOBODY)
        fault_report.add("database_start: leftover of initdb")
        _starts(home)
        assert not rest.exists()
        if left == "a link":
            assert (folder / "elsewhere" / "file").read_text() == "kept"


def _initdb_of(folder: Path) -> list[str]:
    """What initdb has made of a database so far."""
    try:
        return os.listdir(folder / ".pgdata.new")
    except OSError:
        return []


def test_a_creation_that_is_killed_in_its_middle(fault_report: FaultReport) -> None:
    for _ in timed_rounds("database_start", 1, tests=4):
        with database_folder() as folder:
            home = folder / "home"
            home.mkdir()
            with start_script(START + "    start(sys.argv[1])", home) as process:
                wait_until(lambda: "base" in _initdb_of(home))  # noqa: B023 - called in this round
                process.kill()
            for each in postgres_in(home):
                each.kill()
            fault_report.add("database_start: start killed during initdb")
            assert not (home / "pgdata" / "PG_VERSION").exists()
            _starts(home)
            assert not _initdb_of(home)


def _is_initdb(process: dict[str, Any], home: Path) -> bool:
    return process["name"] == "initdb" and os.fspath(home / ".pgdata.new") in (process["cmdline"] or ())


def test_two_creations_never_work_in_one_folder(fault_report: FaultReport) -> None:
    """Where the process that took the lock is killed and initdb lives on, the lock lives as long as initdb does."""
    for _ in range(10):  # initdb may be faster than the signal that suspends it
        with database_folder() as folder:
            home = folder / "home"
            home.mkdir()
            with start_script(START + "    start(sys.argv[1])", home) as process:
                wait_until(lambda: "base" in _initdb_of(home))  # noqa: B023 - called in this round
                suspended = [each for each in psutil.process_iter(["name", "cmdline"]) if _is_initdb(each.info, home)]
                for each in suspended:
                    each.suspend()
                process.kill()
            lives_on = any(each.is_running() and each.status() == psutil.STATUS_STOPPED for each in suspended)
            if lives_on:
                fault_report.add("database_start: start killed during initdb")
                with pytest.raises(ProjectionUnavailableError, match="another start of the database"):
                    server_in(home, timeout_seconds=0.5).ensure_running()
            for each in suspended:
                each.resume()
            _starts(home)
        if lives_on:
            return
    pytest.fail("initdb was never suspended in time")


# ---------------------------------------------------------------------------------------- servers that are half there


@pytest.mark.parametrize("what", ["suspended", "busy"])
def test_a_killed_server_whose_backends_live_on(home: Path, what: str, fault_report: FaultReport) -> None:
    """A busy one does not see by itself that its server is gone."""
    killed = _starts(home)
    connection = psycopg.pq.PGconn.connect(server_in(home).get_uri().encode())
    connection.exec_(b"DROP TABLE IF EXISTS kept; CREATE TABLE kept AS SELECT 1")
    backend = connection.backend_pid
    if what == "busy":
        connection.send_query(b"SELECT count(*) FROM generate_series(1, 100000000000)")
    else:
        os.kill(backend, signal.SIGSTOP)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: {each.pid for each in postgres_in(home)} <= {backend})
    fault_report.add("database_start: server killed, backends alive")
    if what == "suspended":  # nothing but a person can help, who is told so within the limit
        with pytest.raises(ProjectionUnavailableError, match=f"kill -CONT {backend}"):
            server_in(home, timeout_seconds=1.0).ensure_running()
        os.kill(backend, signal.SIGCONT)
    _starts(home)
    connection.finish()
    assert ask(server_in(home), "SELECT count(*) FROM kept") == 1


def test_a_suspended_server_is_an_error_within_the_limit(home: Path, fault_report: FaultReport) -> None:
    pid = _starts(home)
    os.kill(pid, signal.SIGSTOP)
    fault_report.add("database_start: server suspended")
    with pytest.raises(ProjectionUnavailableError, match=f"is suspended: kill -CONT {pid}"):
        server_in(home, timeout_seconds=1.0).ensure_running()
    os.kill(pid, signal.SIGCONT)
    assert _starts(home) == pid


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    for line, reason in (
        ("shared_preload_libraries = 'no_such_library'", "no_such_library"),
        ("no_such_setting = 1", "no_such_setting"),
        ("lc_monetary = 'xx_YY.UTF-8'", "xx_YY.*Install the locale"),
    ):
        conf = home / "pgdata" / "postgresql.conf"
        text = conf.read_text()
        conf.write_text(text + line + "\n")
        with pytest.raises(ProjectionUnavailableError, match=f"did not start: .*{reason}"):
            server_in(home).ensure_running()
        conf.write_text(text)
    (home / "pgdata" / "global" / "pg_control").rename(home / "control")
    with pytest.raises(ProjectionUnavailableError, match="pg_control"):
        server_in(home).ensure_running()
    (home / "control").rename(home / "pgdata" / "global" / "pg_control")
    _starts(home)


def test_a_data_folder_that_is_not_one(fault_report: FaultReport) -> None:
    with database_folder() as folder:
        (folder / "pgdata").mkdir()
        (folder / "pgdata" / "somebody's file").write_text("kept")
        fault_report.add("database_start: data folder of somebody else")
        with pytest.raises(ProjectionUnavailableError, match="must be empty"):
            server_in(folder).ensure_running()
        assert os.listdir(folder / "pgdata") == ["somebody's file"]
        assert not _initdb_of(folder)


# ------------------------------------------------------------------------------------------------------ its log files


def test_a_start_shortens_a_long_log(home: Path) -> None:
    log = home / "pgdata" / "log"
    size = server_module.LOG_BYTES_MAX
    with log.open("ab") as file:
        file.write(b"an old line\n" * (size // 10) + b"the newest line\n")
    owner = log.stat().st_uid
    server_in(home).ensure_running()
    text = log.read_bytes()
    assert len(text) < size // 2
    assert text.startswith(b"an old line\n")
    assert b"\nthe newest line\n" in text
    assert b"ready to accept connections" in text
    assert log.stat().st_uid == owner


def test_a_process_leaves_no_empty_log_behind(tmp_path: Path) -> None:
    script = """
        import sys
        from pixelmemory import Memory, Options

        with Memory("notes", embedding_config=None, options=Options(home=sys.argv[1], progress=False)) as mem:
            mem.add_entry("text")
            mem.flush()
    """
    with pixeltable_home() as home:
        for _ in range(2):
            assert run_script(script, tmp_path, PIXELTABLE_HOME=str(home)).returncode == 0
        assert [path.name for path in (home / "logs").iterdir() if path.stat().st_size == 0] == []


# ----------------------------------------------------------------------------------------------------- starts at once


@pytest.mark.parametrize("count", [3, 6] if LONG_FORM else [6])
@pytest.mark.parametrize("first", [True, False], ids=["first start", "later start"])
def test_starts_at_once(template: Path, count: int, first: bool, fault_report: FaultReport) -> None:
    for _ in timed_rounds("database_start", 1, tests=8):
        with database_folder() as folder:
            home = folder / "home"
            if first:
                home.mkdir()
            else:
                copy_cluster(template, home)
            script = START + "    print(json.dumps([start(sys.argv[1]), pid_in(Path(sys.argv[1]))]))"
            processes = [start_script(script, home) for _ in range(count)]
            answers = [_end_of(process) for process in processes]
            fault_report.add("database_start: starts at once", count)
            assert answers == [[["started", "postgres"], pid_in(home)]] * count
            assert not _initdb_of(home)


def _end_of(process: Any, timeout_seconds: float = 60.0) -> Any:
    return answer_of(_ended(process, timeout_seconds))


def _ended(process: Any, timeout_seconds: float) -> subprocess.CompletedProcess[str]:
    with process:
        try:
            out, err = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


#: each takes seconds, most of them to import Pixeltable
STARTERS = ("plain", "one", "two", "three") if LONG_FORM else ("plain", "one")

MIXED = """
    import json, os, sys
    from pathlib import Path
    name = sys.argv[1]
    if name == "plain":
        import pixeltable as pxt
        pxt.init()
        pxt.create_dir("plain")
        seen = 1
    else:
        from tests.harness.engine_tools import open_memory, vector
        with open_memory(os.environ["PIXELTABLE_HOME"] + "-stores", name) as memory:
            memory.add_entry("x", embedding=vector(1))
            seen = memory.count()
    pid = int((Path(os.environ["PIXELTABLE_HOME"]) / "pgdata" / "postmaster.pid").read_text().split()[0])
    print(json.dumps([seen, pid]))
"""


def test_a_plain_pixeltable_and_stores_start_at_once(fault_report: FaultReport) -> None:
    """All use one server, whoever starts it, and create one database."""
    for _ in timed_rounds("database_start", 1, tests=5):
        with pixeltable_home() as pixeltable:
            processes = [start_script(MIXED, name, PIXELTABLE_HOME=str(pixeltable)) for name in STARTERS]
            plain, *ours = [_ended(process, 120) for process in processes]
            fault_report.add("database_start: starts at once", len(STARTERS))
            assert [answer_of(done) for done in ours] == [[1, pid_in(pixeltable)]] * len(ours)
            if plain.returncode != 0:  # Pixeltable itself does not expect that another process makes its database
                assert "already exists" in plain.stderr
            else:
                assert answer_of(plain) == [1, pid_in(pixeltable)]


@pytest.mark.skipif(not LONG_FORM, reason="starts Pixeltable six times: the long form")
@pytest.mark.parametrize("order", [("plain", "one", "plain"), ("one", "plain", "one")], ids=["after", "before"])
def test_a_plain_pixeltable_before_and_after_ours(order: tuple[str, ...]) -> None:
    with pixeltable_home() as pixeltable:
        script = MIXED.replace('pxt.create_dir("plain")', 'pxt.create_dir("plain", if_exists="ignore")')
        pids = [_end_of(start_script(script, name, PIXELTABLE_HOME=str(pixeltable)))[1] for name in order]
        assert pids == [pid_in(pixeltable)] * 3


# -------------------------------------------------------------------------------------------------------------- paths

PATHS = {
    "everything": 'it\'s a "b" 100% %20 #&+,:@=?$HOME`id`\\;*é',
    "a space": "my data",
    "apostrophe": "it's",
    "quotes": 'a "quoted" one',
    "percent": "100%",
    "percent code": "a%20b",
    "hash": "a#b",
    "ampersand": "a&b",
    "plus": "a+b",
    "comma": "a,b",
    "colon": "a:b",
    "at": "a@b",
    "equals and question": "a=b?c=d",
    "dollar": "$HOME",
    "backtick": "`id`",
    "backslash": "a\\b",
    "semicolon": "a;b",
    "star": "a*b",
    "non-ASCII": "données 数据 🐘",
    "200 characters": "x" * 200,
    "200 characters, non-ASCII": "é" * 100,
    "dash": "-rf",
    "blanks around": " leading and trailing ",
}
SHORT_PATHS = ("everything", "200 characters", "200 characters, non-ASCII")


@pytest.mark.parametrize("which", PATHS if LONG_FORM else SHORT_PATHS)
def test_every_path_can_hold_the_database(shared_home: Path, which: str, fault_report: FaultReport) -> None:
    home = shared_home.rename(shared_home.with_name(PATHS[which]))
    try:
        pid = _starts(home)
        engine = sql.create_engine(server_in(home).get_uri(driver="psycopg"))  # as Pixeltable connects
        try:
            with engine.connect() as connection:
                where = connection.execute(sql.text("SHOW data_directory")).scalar()
                assert where == os.path.realpath(home / "pgdata")
        finally:
            engine.dispose()
        sockets = Path(server_in(home)._pid_file().socket_folder)  # type: ignore[union-attr]
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        fault_report.add("database_start: path")
        assert _starts(home) == pid
        _shut_down(home)
        if sockets != home / "pgdata":
            sockets.rmdir()
    finally:
        stop_all(home)
        home.rename(shared_home)


def test_a_home_behind_a_link_is_the_same_database(home: Path, template: Path) -> None:
    link = home.with_name("link")
    link.symlink_to(home)
    pid = _starts(link)
    assert _starts(home) == pid
    data = copy_cluster(template, home.with_name("elsewhere"))  # the data folder itself
    third = home.with_name("third")
    third.mkdir()
    (third / "pgdata").symlink_to(data / "pgdata")
    assert _starts(third) == _starts(data)


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("PIXELTABLE_HOME", "PIXELTABLE_PGDATA", "PIXELTABLE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    "given", ["relative", "./a/../relative", "relative/", "~/relative", "{here}/relative//", "{here}/a/b/c/relative"]
)
def test_a_home_becomes_absolute_once(tmp_path: Path, unset: pytest.MonkeyPatch, given: str) -> None:
    unset.setenv("HOME", str(tmp_path))
    unset.chdir(tmp_path)
    unset.setenv("PIXELTABLE_HOME", given.format(here=tmp_path))
    home = _prepare_home()
    assert home.is_dir()
    assert home.is_absolute()
    assert os.environ["PIXELTABLE_HOME"] == str(home)
    (tmp_path / "other").mkdir()
    unset.chdir(tmp_path / "other")
    assert _prepare_home() == home
    assert not (tmp_path / "~").exists()
    assert os.listdir(tmp_path / "other") == []


@pytest.mark.parametrize("name", ["PIXELTABLE_PGDATA", "PIXELTABLE_CONFIG"])
def test_other_paths_become_absolute_too(tmp_path: Path, unset: pytest.MonkeyPatch, name: str) -> None:
    unset.setenv("PIXELTABLE_HOME", str(tmp_path / "home"))
    unset.chdir(tmp_path)
    unset.setenv(name, "there")
    _prepare_home()
    assert os.environ[name] == str(tmp_path / "there")


BAD_HOMES = {
    "a file": "file",
    "below a file": "file/below",
    "a dangling link": "dangling",
    "a loop": "loop",
    "too long": "x" * 300,
    "a newline": "a\nb",
    "a tab": "a\tb",
    "an escape": "a\x1b[31m",
    "no such user": "~nobody-of-this-name/x",
}


@pytest.mark.parametrize("which", BAD_HOMES)
def test_a_home_that_cannot_be_is_named(tmp_path: Path, unset: pytest.MonkeyPatch, which: str) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "file" / "nowhere")
    unset.chdir(tmp_path)
    unset.setenv("PIXELTABLE_HOME", BAD_HOMES[which])
    with pytest.raises(StoreError, match="PIXELTABLE_HOME"):
        _prepare_home()
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file", "loop"]


READ_ONLY = """
    import json, os, sys
    from pixelmemory import StoreError
    from pixelmemory.projection.pixeltable.startup import _prepare_home
    if os.geteuid() == 0:
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
    answers = []
    for home in sys.argv[1:]:
        os.environ["PIXELTABLE_HOME"] = home
        try:
            _prepare_home()
            answers.append("made")
        except StoreError as error:
            answers.append("named" if "PIXELTABLE_HOME" in str(error) else str(error))
    print(json.dumps(answers))
"""


def test_homes_without_the_right_to_write() -> None:
    with database_folder() as folder:
        for name, mode in (("closed", 0o500), ("unreadable", 0o300), ("no entry", 0o600)):
            (folder / name).mkdir()
            if is_root:
                os.chown(folder / name, NOBODY, NOBODY)
            (folder / name).chmod(mode)
        homes = [folder / "closed", folder / "closed" / "new", folder / "unreadable", folder / "no entry" / "new"]
        assert answer_of(run_script(READ_ONLY, *homes)) == ["named"] * 4


@needs_root
def test_another_data_folder(template: Path, fault_report: FaultReport) -> None:
    """PIXELTABLE_PGDATA: its parent may not be there, or not be ours to write."""
    with database_folder() as folder:
        copy_cluster(template, folder / "data")
        server = server_module.EmbeddedServer(folder / "data" / "pgdata", programs(), timeout_seconds=30)
        server.ensure_running()
        assert ask(server) == 1
        missing = server_module.EmbeddedServer(folder / "no" / "pgdata", programs(), timeout_seconds=30)
        with pytest.raises(ProjectionUnavailableError, match="folder of the database cannot be used"):
            missing.ensure_running()
    fault_report.add("database_start: path", 2)


# -------------------------------------------------------------------------------------------------------- environment

LOCALES = (
    {"LANG": "xx_YY.UTF-8"},
    {"LC_ALL": "xx_YY.UTF-8"},
    {"LANG": "C.UTF-8", "LC_MESSAGES": "xx_YY"},
    {"LANG": "", "LC_ALL": "no such thing", "LC_COLLATE": "\udcff"},
)


@pytest.mark.parametrize("locale", LOCALES if LONG_FORM else LOCALES[-1:], ids=lambda locale: "-".join(locale))
def test_a_locale_that_is_not_installed(
    locale: dict[str, str], monkeypatch: pytest.MonkeyPatch, fault_report: FaultReport
) -> None:
    """As in images that set LANG and have no locales: the database is created all the same, in UTF-8."""
    for name in [name for name in os.environ if name.startswith("LC_")] + ["LANG", "LANGUAGE"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in locale.items():
        monkeypatch.setenv(name, value)
    with database_folder() as folder:
        (folder / "home").mkdir()
        _starts(folder / "home")
        assert ask(server_in(folder / "home"), "SHOW server_encoding") == "UTF8"
    fault_report.add("database_start: locale that is not installed")


def test_variables_of_postgresql(home: Path, monkeypatch: pytest.MonkeyPatch, fault_report: FaultReport) -> None:
    """Those that say where another server is change nothing."""
    others = {
        "PGPORT": "1",
        "PGDATA": "/nowhere",
        "PGHOST": "nowhere.invalid",
        "PGUSER": "somebody",
        "PGDATABASE": "nothing",
        "PGPASSWORD": "secret",
        "PGPASSFILE": "/nowhere",
        "PGOPTIONS": "-c statement_timeout=60000",
        "PGAPPNAME": "mine",
        "PGCLIENTENCODING": "LATIN1",
        "PGTZ": "Asia/Tokyo",
        "PGCONNECT_TIMEOUT": "1",
    }
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    fault_report.add("database_start: variable of PostgreSQL", len(others))
    _starts(home)


@pytest.mark.parametrize("name", ["PGSERVICE", "PGOPTIONS", "PGREQUIREAUTH", "PGHOSTADDR"])
def test_variables_that_keep_every_client_away_are_told(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    value = {
        "PGSERVICE": "no_such_service",
        "PGOPTIONS": "-c no_such=1",
        "PGREQUIREAUTH": "scram-sha-256",
        "PGHOSTADDR": "127.0.0.1",
    }[name]
    monkeypatch.setenv(name, value)
    with pytest.raises(ProjectionUnavailableError, match=r"no_such|auth|127\.0\.0\.1"):
        server_in(home, timeout_seconds=1.0).ensure_running()
    monkeypatch.delenv(name)
    _starts(home)


@pytest.mark.parametrize("umask", [0o000, 0o077] if LONG_FORM else [0o000])
def test_every_umask(umask: int, fault_report: FaultReport) -> None:
    """What is made is its owner's alone."""
    with database_folder() as folder:
        home = folder / "home"
        home.mkdir()
        before = os.umask(umask)
        try:
            _starts(home)
        finally:
            os.umask(before)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (home / "pgdata", *home.iterdir())}
        assert modes == {"pgdata": 0o700, ".pixelmemory-start.lock": 0o600 & ~umask}
        files = [path for path in (home / "pgdata").rglob("*") if path.is_file()]
        assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in files} == {0}
    fault_report.add("database_start: umask")


# ----------------------------------------------------------------------------------------------------------- accounts


@needs_root
def test_another_account_after_root(home: Path, fault_report: FaultReport) -> None:
    """On one machine, with one temporary folder; the other has a home of its own."""
    if not can_run_programs(NOBODY):
        pytest.skip("the programs lie where another user may not enter")
    _starts(home)
    theirs = home.with_name("theirs")
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    script = START + f"    print(json.dumps(as_user({NOBODY}, lambda: [start(home) for home in sys.argv[1:]])))"
    own, roots = answer_of(run_script(script, theirs, home, HOME=str(theirs)))
    fault_report.add("database_start: another account")
    assert own == ["started", "postgres"]
    assert roots[0] == "ProjectionUnavailableError"
    assert "Permission denied" in roots[1]


@needs_root
def test_an_account_without_a_name(template: Path, fault_report: FaultReport) -> None:
    """initdb refuses it, and says so; a database that is there serves it."""
    uid = 12345
    if not can_run_programs(uid):
        pytest.skip("the programs lie where another user may not enter")
    with database_folder() as folder:
        (folder / "new").mkdir()
        copy_cluster(template, folder / "old")
        for path in (folder / "new", folder / "old", *(folder / "old").rglob("*")):
            os.chown(path, uid, uid)
        script = START + f"    print(json.dumps(as_user({uid}, lambda: [start(home) for home in sys.argv[1:]])))"
        new, old = answer_of(run_script(script, folder / "new", folder / "old", HOME="/"))
        assert new[0] == "ProjectionUnavailableError"
        assert "could not look up effective user ID 12345" in new[1]
        assert "/etc/passwd" in new[1]
        assert old == ["started", "postgres"]
        assert not _initdb_of(folder / "new")
    fault_report.add("database_start: account without a name", 2)


@needs_root
def test_a_closed_home_of_root_stays_closed(template: Path, fault_report: FaultReport) -> None:
    """The server's own user can pass; nobody else can enter or list any folder above."""
    with database_folder() as folder:
        above = folder / "root's"
        home = copy_cluster(template, above / "deeper" / "home")
        closed = [above, above / "deeper", home]
        for path in closed:
            path.chmod(0o700)
        _starts(home)
        for path in closed:
            for uid, gid in ((NOBODY, NOBODY), (NOBODY, 0), (NOBODY, (home / "pgdata").stat().st_gid)):
                for command in ("ls", path), ("cat", path / "."), ("stat", path / "deeper"), ("stat", path / "x"):
                    done = subprocess.run(
                        command, user=uid, group=gid, extra_groups=[], capture_output=True, text=True, cwd="/"
                    )
                    assert done.returncode != 0
                    assert "Permission denied" in done.stderr, (command, done.stderr)
            assert path.stat().st_mode & 0o046 == 0  # the group's bits are the list's bound: to pass, not to read
        owner = (home / "pgdata").stat().st_uid
        listing = subprocess.run(["ls", above], user=owner, group=owner, extra_groups=[], capture_output=True, cwd="/")
        assert listing.returncode != 0  # nor does the server's user see what else root has there
    fault_report.add("database_start: closed home")


# --------------------------------------------------------------------------------------------------------------- disk

FULL_DISK = """
    import subprocess
    from tests.harness.database_tools import stop_all
    home = Path(sys.argv[1])
    answers = {}
    for mebibytes in map(int, sys.argv[2:]):
        home.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=755", "tmpfs", home], check=True)
        first = start(home)
        subprocess.run(["mount", "-o", "remount,size=300m", home], check=True)
        answers[mebibytes] = [first, start(home)]
        stop_all(home)
        subprocess.run(["umount", "-l", home], check=True)
    print(json.dumps(answers))
"""


@pytest.mark.skipif(not may_mount(), reason="mounts a small disk, as root can")
def test_a_nearly_full_disk(fault_report: FaultReport) -> None:
    """Too small for initdb, for the server, or just enough: it starts, or says why; with room it starts."""
    sizes = [1, 4, 12, 24, 32, 36, 38, 39, 40, 41, 42, 44, 48, 64] if LONG_FORM else [4, 36, 40]
    with database_folder() as folder:
        script = [sys.executable, "-c", textwrap.dedent(START + FULL_DISK), str(folder / "home"), *map(str, sizes)]
        done = subprocess.run(
            ["unshare", "-m", *script], capture_output=True, text=True, timeout=400, env=script_environment()
        )
        answers = answer_of(done)
    fault_report.add("database_start: nearly full disk", len(sizes))
    outcomes = set()
    for first, then in answers.values():
        outcomes.add(first[0])
        if first[0] != "started":
            assert "No space left" in first[1]
            assert "Make room on the disk" in first[1]
        assert then == ["started", "postgres"]
    assert "ProjectionUnavailableError" in outcomes


# --------------------------------------------------------------------------------------------------------------- waits


def test_a_start_that_waits_is_bounded_and_can_be_ended(home: Path) -> None:
    class EndedError(Exception):
        pass

    def end() -> None:
        if time.monotonic() > ends_at:
            raise EndedError

    with start_script(
        """
        import sys
        from pathlib import Path
        from pixelmemory.projection.pixeltable.start_lock import locked_start
        with locked_start(Path(sys.argv[1]), 10):
            print("held", flush=True)
            sys.stdin.read()
        """,
        home,
    ) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ProjectionUnavailableError, match="database_timeout_seconds"):
            server_in(home, timeout_seconds=0.2).ensure_running()
        ends_at = time.monotonic() + 0.2
        with pytest.raises(EndedError):
            server_in(home, timeout_seconds=600, check=end).ensure_running()
        process.kill()
    with locked_start(home, 5):  # nobody holds it any more
        _starts(home)
    stop_all(home)
