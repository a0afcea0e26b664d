"""How far the projection is, shown while somebody waits for it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Progress", "Report"]

#: called with the events that are visible, and the events that there will be in all
Report: TypeAlias = Callable[[int, int], object]


class _Projector(Protocol):
    """What a wait looks at: :class:`pixelmemory.projection.projector.Projector`, or what stands in its place."""

    @property
    def watermark(self) -> int:
        """The last LSN that is visible."""


class Progress:
    """Shows or reports how many of the events that are waited for are visible. A context manager, around the wait.

    Args:
        what: is waited for; before the bar.
        projector: applies the events.
        lsn: the last of them.
        report: True for a bar on stderr, False for nothing, or a function.
        after_seconds: how long to wait before the first word.
    """

    def __init__(
        self, what: str, projector: _Projector, lsn: int, report: Report | bool, *, after_seconds: float = 0.0
    ) -> None:
        self._what = what
        self._projector = projector
        self._lsn = lsn
        self._first_lsn = projector.watermark
        self._report = report
        self._begins_at = time.monotonic() + after_seconds
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and (self._bar is not None or callable(self._report)):
            self.tick()  # it is complete
        if self._bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self._bar.close()

    def tick(self) -> None:
        """Show how far it is now."""
        if not self._report or time.monotonic() < self._begins_at:
            return
        count = self._lsn - self._first_lsn
        done = min(max(self._projector.watermark - self._first_lsn, 0), count)
        if callable(self._report):
            self._report(done, count)
            return
        with contextlib.suppress(OSError, ValueError):  # stderr is closed: the wait must not fail for that
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(total=count, desc=self._what, unit=" events", file=sys.stderr, miniters=0)
            self._bar.update(done - self._bar.n)
