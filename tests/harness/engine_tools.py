"""What the life-cycle tests and the engine's rows of the fault battery share: vectors, and processes of their own.

Scripts that run in another process import it too: it imports neither pytest nor anything of a test.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psutil

from pixelmemory import AsyncMemory, Memory, Options

if TYPE_CHECKING:
    from pixelmemory.projection.pixeltable.host import PixeltableHost
    from pixelmemory.projection.pixeltable.tables import TableSet
    from pixelmemory.projection.sql.hnsw import IndexKeeper

__all__ = [
    "GIVEN",
    "answer_of",
    "async_memory",
    "host_of",
    "indexes_of",
    "listening_ports",
    "open_memory",
    "options_at",
    "pixeltable_home",
    "run_script",
    "script_environment",
    "start_script",
    "stop_server",
    "tables_of",
    "tables_path",
    "vector",
    "with_pixeltable",
]

T = TypeVar("T")

ROOT = Path(__file__).parent.parent.parent
DIMENSIONS = 8
#: a store whose vectors are always given: no model is loaded
GIVEN: dict[str, Any] = {"dimensions": DIMENSIONS}


def vector(number: int) -> list[float]:
    """A unit vector, (8,), another one for each number."""
    source = random.Random(number)
    values = [source.gauss(0, 1) for _ in range(DIMENSIONS)]
    length = math.hypot(*values)
    return [value / length for value in values]


def options_at(home: Path | str, **changes: Any) -> Options:
    """Options of a store in ``home`` that shows no progress bar."""
    return Options(**{"home": home, "progress": False, **changes})


def open_memory(home: Path | str, name: str, **changes: Any) -> Memory:
    """A store whose vectors are given; ``changes`` are options."""
    return Memory(name, None, GIVEN, options=options_at(home, **changes))


def async_memory(home: Path | str, name: str, **changes: Any) -> AsyncMemory:
    """As :func:`open_memory`; not open yet."""
    return AsyncMemory(name, None, GIVEN, options=options_at(home, **changes))


def with_pixeltable(run: Callable[[], T]) -> T:
    """Use Pixeltable on a thread of its own, and let go there of what it keeps a thread."""
    from pixeltable.runtime import get_runtime

    def released() -> T:
        try:
            return run()
        finally:
            get_runtime().close()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(released).result()


def host_of(memory: Memory) -> PixeltableHost:
    """The host of an open store's tables."""
    engine = memory._memory._engine
    assert engine is not None
    host: Any = engine._store.projection.host  # type: ignore[union-attr]
    return cast("PixeltableHost", host)


def tables_of(memory: Memory) -> TableSet:
    """Which tables it has."""
    return host_of(memory).tables


def indexes_of(memory: Memory) -> IndexKeeper:
    """The upkeep of their HNSW indexes."""
    indexes = host_of(memory).indexes
    assert indexes is not None
    return indexes


def tables_path(store_name: str) -> str:
    """The folder in Pixeltable of the only store of that name; on a thread that Pixeltable may use."""
    import re

    import pixeltable as pxt

    slug = re.sub(r"[^a-z0-9]+", "_", store_name.lower()).strip("_")[:24].strip("_")
    paths = pxt.list_dirs("pixelmemory", recursive=False)
    (path,) = [each for each in paths if re.fullmatch(rf"pixelmemory/{slug}_[0-9a-f]{{32}}", each)]
    return str(path)


def script_environment(**changes: str) -> dict[str, str]:
    """The environment of a process that imports the package and these tools."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **changes}


def start_script(script: str, *arguments: object, python: tuple[str, ...] = (), **environment: str) -> Any:
    """Start ``script`` in a process of its own, with its three streams as text pipes."""
    return subprocess.Popen(
        [sys.executable, *python, "-c", textwrap.dedent(script), *map(str, arguments)],
        env=script_environment(**environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_script(
    script: str, *arguments: object, timeout_seconds: float = 400.0, python: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``script`` to its end; a hang fails the test: the limit is no measure, a busy machine is ten times slower."""
    with start_script(script, *arguments, python=python, **environment) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            raise AssertionError(
                f"the script did not end within {timeout_seconds} s\n{stdout[-2000:]}\n{stderr[-4000:]}"
            ) from None
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def answer_of(done: subprocess.CompletedProcess[str]) -> Any:
    """The JSON document that a script printed last; the script must have succeeded."""
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def listening_ports() -> list[int]:
    """The TCP ports on which this process listens; from /proc."""
    inodes = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith("socket:["):
                inodes.add(target[len("socket:[") : -1])
    ports: list[int] = []
    for table in ("tcp", "tcp6"):
        path = Path("/proc/self/net", table)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                ports.append(int(fields[1].rpartition(":")[2], 16))
    return ports


def stop_server(home: Path, timeout_seconds: float = 60.0) -> None:
    """Stop the embedded PostgreSQL of the Pixeltable home ``home``, if one runs."""
    pid_file = home / "pgdata" / "postmaster.pid"
    try:
        pid, *_, socket_folder = pid_file.read_text().splitlines()[:5]
        server = psutil.Process(int(pid))
        if server.name() != "postgres":  # the file is of a server that was killed
            return
        server.send_signal(signal.SIGINT)  # its fast shutdown
        server.wait(timeout_seconds)
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return
    if socket_folder and Path(socket_folder) != home / "pgdata":  # one of its own, where the path does not fit
        shutil.rmtree(socket_folder, ignore_errors=True)


@contextlib.contextmanager
def pixeltable_home() -> Iterator[Path]:
    """A new Pixeltable home beside the run's own; its server is stopped at the end.

    Not in a test's own folder: PostgreSQL runs as another user where the tests run as root, and could not reach it.
    """
    parent = Path(tempfile.mkdtemp(prefix="own-", dir=Path(os.environ["PIXELTABLE_HOME"]).parent))
    parent.chmod(0o755)
    try:
        yield parent / "pixeltable"
    finally:
        stop_server(parent / "pixeltable")
        shutil.rmtree(parent, ignore_errors=True)
