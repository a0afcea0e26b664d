"""What a run was made on: a figure without it says little."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

__all__ = ["describe"]

_PACKAGES = (
    "pixeltable",
    "torch",
    "sentence-transformers",
    "numpy",
    "chromadb",
    "lancedb",
    "qdrant-client",
    "sqlite-vec",
)


def describe(folder: Path) -> dict[str, str]:
    """The machine, the disk under ``folder``, the versions. Starts Pixeltable, to ask its database for its own."""
    import pixelmemory

    found = {
        "pixelmemory": pixelmemory.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": f"{_cpu()}, {_cpus()} of {os.cpu_count()} CPUs",
        "memory": _memory(),
        "disk": _disk(folder),
    }
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | _database()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"


def _disk(folder: Path) -> str:
    """The file system that holds ``folder``, and the kind of device beneath where it is known."""
    try:
        mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    resolved = folder.resolve()
    device, _, kind = max(
        (each for each in mounts if resolved.is_relative_to(each[1])), key=lambda each: len(each[1]), default=["?"] * 3
    )
    if kind in ("tmpfs", "ramfs"):
        return f"{kind}: memory, where a flush costs nothing; choose another --folder"
    block = Path("/sys/class/block") / Path(device).name
    block = block if (block / "queue").exists() else block.resolve().parent
    try:
        spins = (block / "queue/rotational").read_text().strip() == "1"
        cache = (block / "queue/write_cache").read_text().strip()
    except OSError:
        return f"{kind} on {device}"
    return f"{kind} on {Path(device).name}, {'reported as rotating' if spins else 'not rotating'}, {cache}"


def _database() -> dict[str, str]:
    import psycopg

    from pixelmemory.projection.pixeltable.startup import connection_string, start_pixeltable

    start_pixeltable(keep_http_server=False)
    with psycopg.connect(connection_string()) as connection:
        server = connection.execute("SHOW server_version").fetchone()
        vector = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    return {
        "postgresql": str(server[0]) if server else "unknown",
        "pgvector": str(vector[0]) if vector else "unknown",
    }
