"""A lock that is granted in the order of asking."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType

__all__ = ["FairLock"]


class FairLock:
    """A lock that is granted in the order of asking. ``threading.Lock`` would let a thread that embeds batch after
    batch take it again and again, past a query that waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: who holds it, then who waits
        self._line: deque[object] = deque()

    def __enter__(self) -> None:
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            try:
                self._changed.wait_for(lambda: self._line[0] is ticket)
            except BaseException:
                self._line.remove(ticket)
                self._changed.notify_all()
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._line.popleft()
            self._changed.notify_all()
