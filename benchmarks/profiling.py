"""Where a benchmark's time goes: one profile for the main thread, and one for each of Pixelmemory's threads.

The clock is the thread's own CPU time, so that waiting costs nothing and a busy machine does not show. From Python 3.12
on an interpreter has one active profiler for all of its threads, and only the main thread is profiled.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Profiles", "profiling"]

TOP = 25
_PREFIXES = ("pixelmemory", "AnyIO worker")
_PER_THREAD = sys.version_info < (3, 12)


class Profiles:
    """What was gathered, by the thread's name."""

    def __init__(self) -> None:
        self.stats: dict[str, pstats.Stats] = {}

    def add(self, name: str, profile: cProfile.Profile) -> None:
        profile.create_stats()
        if not profile.stats:
            return
        if name in self.stats:
            self.stats[name].add(profile)
        else:
            self.stats[name] = pstats.Stats(profile)

    def text(self) -> str:
        """The dearest :data:`TOP` functions of each, by own CPU time; the busiest thread first."""
        parts = []
        for name, stats in sorted(self.stats.items(), key=lambda item: -item[1].total_tt):  # type: ignore[attr-defined]
            out = io.StringIO()
            stats.stream = out  # type: ignore[attr-defined]
            stats.strip_dirs().sort_stats("tottime").print_stats(TOP)
            parts.append(f"-- {name}: CPU time\n{out.getvalue().strip()}\n")
        return "\n".join(parts)


@contextmanager
def profiling() -> Iterator[Profiles]:
    """Profile the calling thread, and the threads of Pixelmemory that begin and end in the block."""
    profiles = Profiles()
    run = threading.Thread.run

    def profiled(thread: threading.Thread) -> None:
        if not thread.name.startswith(_PREFIXES):
            return run(thread)
        profile = cProfile.Profile(time.thread_time)
        profile.enable()
        try:
            return run(thread)
        finally:
            profile.disable()
            profiles.add("AnyIO worker threads" if thread.name.startswith("AnyIO") else thread.name, profile)

    if _PER_THREAD:
        threading.Thread.run = profiled  # type: ignore[method-assign,assignment]
    main = cProfile.Profile(time.thread_time)
    main.enable()
    try:
        yield profiles
    finally:
        main.disable()
        threading.Thread.run = run  # type: ignore[method-assign]
        profiles.add("main", main)
