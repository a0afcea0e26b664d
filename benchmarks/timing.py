"""Medians, rounds, a ticker for the event loop, a peak of memory: what every benchmark measures with."""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import anyio

__all__ = ["Ticker", "each_seconds", "each_seconds_async", "p50", "p99", "peak_bytes", "say", "ticking"]

TICK_SECONDS = 0.001


def p50(values: Iterable[float]) -> float:
    return statistics.median(values)


def p99(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[math.ceil(len(ordered) * 0.99) - 1]


def each_seconds(run: Callable[[int], object], indexes: Iterable[int]) -> list[float]:
    """Seconds of each ``run(index)``."""
    seconds = []
    for index in indexes:
        started = time.perf_counter()
        run(index)
        seconds.append(time.perf_counter() - started)
    return seconds


async def each_seconds_async(run: Callable[[int], Awaitable[object]], indexes: Iterable[int]) -> list[float]:
    """Seconds of each ``await run(index)``."""
    seconds = []
    for index in indexes:
        started = time.perf_counter()
        await run(index)
        seconds.append(time.perf_counter() - started)
    return seconds


class Ticker:
    """How much later than asked a task in the event loop woke, again and again."""

    def __init__(self) -> None:
        self.late_seconds: list[float] = []

    async def run(self) -> None:
        while True:
            started = time.perf_counter()
            await anyio.sleep(TICK_SECONDS)
            self.late_seconds.append(max(0.0, time.perf_counter() - started - TICK_SECONDS))


@asynccontextmanager
async def ticking() -> AsyncIterator[Ticker]:
    """A ticker that runs in the block."""
    ticker = Ticker()
    async with anyio.create_task_group() as group:
        group.start_soon(ticker.run)
        yield ticker
        group.cancel_scope.cancel()


def peak_bytes() -> int:
    """The most memory that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def say(text: str) -> None:
    """One line of progress."""
    print(f"  {text}", file=sys.stderr, flush=True)
