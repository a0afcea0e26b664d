"""Ignores the warnings of other people's code while it is imported and started, on one thread.

The packages beneath warn as they load (of deprecated calls among themselves, of an optional package, of a missing
``XDG_RUNTIME_DIR``). None of it is the user's to change, and where warnings are errors each would fail the open.

``warnings.catch_warnings`` is no way to do that from a worker thread: it swaps the filters of the whole process, hides
the warnings of every other thread, and where two blocks overlap the second to end puts back what the first had put in.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any, cast

__all__ = ["ignore_warnings"]


class _ThisThread:
    """In a filter's place for the pattern of a message: matches any, on one thread, until :meth:`end`."""

    def __init__(self) -> None:
        self._thread_id: int | None = threading.get_ident()

    def match(self, _text: str) -> bool:
        """What the filter machinery asks."""
        return threading.get_ident() == self._thread_id

    def end(self) -> None:
        """Match nothing any more: another thread may have saved a copy of the filters, and put it back later."""
        self._thread_id = None


@contextlib.contextmanager
def ignore_warnings() -> Iterator[None]:
    """Ignore every warning that this thread raises in the block; those of other threads are shown as ever.

    A filter that anybody puts in front during the block comes first.
    """
    here = _ThisThread()
    entry = ("ignore", here, Warning, None, 0)
    filters = cast(list[Any], warnings.filters)
    filters.insert(0, entry)  # nothing is cached of "ignore", so there is no cache to clear
    try:
        yield
    finally:
        here.end()
        with contextlib.suppress(ValueError):  # somebody emptied the list
            filters.remove(entry)
