"""What an open is doing, said on a terminal where it takes long."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Self

__all__ = ["OpeningLine"]

#: how long an open takes before it says what it is doing
AFTER_SECONDS = 2.0


class OpeningLine:
    """One line on stderr for each long step of an open, if that is a terminal. A context manager, around the open.

    Args:
        store: its name.
        shown: whether anything may be said.
    """

    def __init__(self, store: str, *, shown: bool) -> None:
        self._store = store
        self._doing = ""
        self._lock = threading.Lock()
        self._is_late = False
        self._timer: threading.Timer | None = None
        if shown and sys.stderr is not None and sys.stderr.isatty():
            self._timer = threading.Timer(AFTER_SECONDS, self._late)
            self._timer.daemon = True

    def doing(self, what: str) -> None:
        """The open begins with ``what``."""
        with self._lock:
            self._doing = what
            if self._is_late:
                self._say()

    def __enter__(self) -> Self:
        if self._timer is not None:
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._doing = ""

    def _late(self) -> None:
        with self._lock:
            self._is_late = True
            self._say()

    def _say(self) -> None:
        if self._doing:
            sys.stderr.write(f"pixelmemory: opening {self._store}: {self._doing} ...\n")
            sys.stderr.flush()
