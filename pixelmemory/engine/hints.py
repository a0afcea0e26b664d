"""One warning each for calls that are legal and surely not meant: they find nothing, and do not say why.

Looked into only after a call has found nothing, and only until the warning of that kind was given. So a call that finds
something pays nothing, and one that does not pays a look into memory; memories of other namespaces are looked for
:data:`LOOKS_MAX` times at most.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import unicodedata
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import anyio

from pixelmemory.engine.visibility import Visibility
from pixelmemory.errors import PixelmemoryError, brief
from pixelmemory.memory.filters import And, Condition, Filter, Not, Or
from pixelmemory.memory.search import Ranking, Search
from pixelmemory.store.store import OpenStore

__all__ = ["Hints"]

_logger = logging.getLogger("pixelmemory")

#: how often, in the life of an open store, a memory that is missing is looked for in other namespaces
LOOKS_MAX = 20
#: how many ids of one call are looked for, in how many namespaces, and for how long
IDS_MAX = 20
NAMESPACES_MAX = 20
LOOK_SECONDS = 0.5
#: names that the nearest one is chosen from, and names that a message lists
COMPARED_MAX = 1000
LISTED_MAX = 5


class Hints:
    """The warnings of one open store. Belongs to the event loop's thread.

    Args:
        store, visible: of the engine; the store has just been opened.
        read: runs a blocking read on another thread.
    """

    def __init__(
        self, store: OpenStore, visible: Visibility, read: Callable[[Callable[[], Any]], Coroutine[Any, Any, Any]]
    ) -> None:
        self._store = store
        self._visible = visible
        self._read = read
        #: until here the log may name namespaces that the tables do not know yet
        self._opened_lsn = store.log.durable_lsn
        #: the kinds of warnings that were given
        self._given: set[str] = set()
        self._looks_left = LOOKS_MAX

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._given:  # another call may have been faster
            self._given.add(kind)
            _logger.warning("%s", message)

    async def nothing_found(self, wanted: Search, *, is_search: bool = False) -> None:
        """A search, a list, a count or a delete by conditions has found nothing.

        Args:
            is_search: whether ``search`` was called, whose first argument is taken for a query by mistake.
        """
        if wanted.offset or wanted.after is not None:
            return  # the end of the results
        if wanted.filter is not None and "content" in _top_fields(wanted.filter):
            self._warn(
                "filter on content",
                "metadata_filter has a condition on 'content', and nothing was found: a filter looks at metadata "
                "alone; to find texts by what they say, pass query=...",
            )
        if wanted.under is not None:
            return  # nothing is surely meant to be under a prefix
        if is_search and wanted.ranking is Ranking.NEWEST and not wanted.named:
            (namespace,) = wanted.namespaces
            if any(char.isspace() for char in namespace):
                if "question" not in self._given and self._never_wrote(namespace):
                    said = f"search() was given the namespace {brief(namespace)}, which holds no memory"
                    self._warn("question", f"{said}: did you mean query=...?")
                return
        for namespace in wanted.namespaces[:COMPARED_MAX]:
            await self._unknown_namespace(namespace)

    async def missing(self, namespace: str, memory_ids: Iterable[str]) -> None:
        """None of ``memory_ids`` is in ``namespace``; the caller holds none of them locked."""
        if "elsewhere" not in self._given and self._looks_left:
            self._looks_left -= 1
            found = await self._elsewhere(namespace, list(islice(memory_ids, IDS_MAX)))
            if found is not None:
                memory_id, other = map(brief, found)
                said = f"namespace {brief(namespace)} has no memory {memory_id}, and namespace {other} has"
                self._warn("elsewhere", f"{said}: did you mean namespace={other}?")
                return
        await self._unknown_namespace(namespace)

    async def _elsewhere(self, namespace: str, memory_ids: Sequence[str]) -> tuple[str, str] | None:
        """One of the memories, and another namespace that has it, among some; None where that takes long to see."""
        unseen: dict[str, set[str]] = {}
        for memory_id in memory_ids:
            for other, exists in self._visible.memtable.holders(memory_id, COMPARED_MAX).items():
                if exists and other != namespace:
                    return memory_id, other
                unseen.setdefault(other, set()).add(memory_id)  # deleted there, whatever the tables show
        with contextlib.suppress(PixelmemoryError), anyio.move_on_after(LOOK_SECONDS):
            found: tuple[str, str] | None = await self._read(
                lambda: _holder(self._store, namespace, memory_ids, unseen)
            )
            return found
        return None

    async def _unknown_namespace(self, namespace: str) -> None:
        if "namespace" in self._given or not self._never_wrote(namespace):
            return
        names = self._visible.memtable.namespaces(COMPARED_MAX)
        with contextlib.suppress(PixelmemoryError), anyio.move_on_after(LOOK_SECONDS):
            names += await self._read(self._store.projection.host.namespaces)
        if not names:
            return  # nothing was written at all, as at the first start of an agent
        said, near = f"nothing was ever written to namespace {brief(namespace)}", _nearest(namespace, names)
        if near is None:
            names = sorted(set(names))
            more = f" and {len(names) - LISTED_MAX:,} more" if len(names) > LISTED_MAX else ""
            self._warn("namespace", f"{said}; there are {', '.join(map(brief, names[:LISTED_MAX]))}{more}")
        else:
            self._warn("namespace", f"{said}: did you mean {brief(near)}?")

    def _never_wrote(self, namespace: str) -> bool:
        """Whether it is certain that ``namespace`` never held a memory. Waits for nothing."""
        visible, store = self._visible, self._store
        if visible.memtable.last_lsn(namespace) or visible.known_lsn < store.log.durable_lsn:
            return False
        return store.projection.projector.watermark >= self._opened_lsn and not store.query.knows(namespace)


def _top_fields(condition: Filter) -> set[str]:
    """The fields of the metadata that ``condition`` asks about."""
    match condition:
        case And(items) | Or(items):
            return {field for item in items for field in _top_fields(item)}
        case Not(item):
            return _top_fields(item)
        case Condition(path):
            return {path[0]}


def _holder(
    store: OpenStore, but: str, memory_ids: Sequence[str], deleted: Mapping[str, Collection[str]]
) -> tuple[str, str] | None:
    """One of the memories, and the namespace whose table shows it, among the first that are not ``but``; blocking."""
    others = (namespace for namespace in store.projection.host.namespaces() if namespace != but)
    for other in islice(others, NAMESPACES_MAX):
        wanted = [memory_id for memory_id in memory_ids if memory_id not in deleted.get(other, ())]
        found = store.query.existing(other, wanted) if wanted else set()
        for memory_id in wanted:
            if memory_id in found:
                return memory_id, other
    return None


def _nearest(name: str, names: Sequence[str]) -> str | None:
    """The one of ``names`` that ``name`` was most likely meant to be; None if none is like it."""
    by_folded = {_folded(each): each for each in names}
    if (same := by_folded.get(_folded(name))) is not None:
        return same
    near = difflib.get_close_matches(_folded(name), list(by_folded)[:COMPARED_MAX], n=1)
    return by_folded[near[0]] if near else None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()
