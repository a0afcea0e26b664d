"""Texts that several reads want embedded at the same time go through the model together.

A model takes hardly longer for a few texts than for one, so a hundred reads that wait for it one after another would
wait ten times as long as they have to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    import numpy as np

__all__ = ["EmbeddedTogether"]

#: texts of one pass; those that wait go on with the next
TEXTS_MAX = 64


class _Wanted:
    """The texts of one read."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.vectors: list[np.ndarray] | None = None
        #: a pass that it was part of has failed, perhaps for its sake
        self.is_alone = False


class EmbeddedTogether:
    """Gathers what is wanted while a pass goes on, and embeds it with the next. Of one event loop.

    Args:
        embed: distinct texts -> float32, ``(n, dimensions)``; runs on a thread.
        on_thread: runs a blocking call there.
    """

    def __init__(
        self,
        embed: Callable[[list[str]], np.ndarray],
        on_thread: Callable[[Callable[[], np.ndarray]], Awaitable[np.ndarray]],
    ) -> None:
        self._embed = embed
        self._on_thread = on_thread
        self._turn = anyio.Lock()
        self._waiting: list[_Wanted] = []

    async def vectors(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The vectors of ``texts``, in their order.

        Raises:
            Whatever ``embed`` raises for these texts alone.
        """
        mine = _Wanted(texts)
        self._waiting.append(mine)
        try:
            async with self._turn:
                while mine.vectors is None:
                    await self._pass(mine)
        finally:
            if mine in self._waiting:
                self._waiting.remove(mine)
        return mine.vectors

    async def _pass(self, mine: _Wanted) -> None:
        """Embed what ``mine`` wants, and what else waits."""
        together = [mine]
        count = len(mine.texts)
        for other in [] if mine.is_alone else self._waiting:
            if other is not mine and not other.is_alone and count + len(other.texts) <= TEXTS_MAX:
                together.append(other)
                count += len(other.texts)
        distinct = list(dict.fromkeys(text for wanted in together for text in wanted.texts))
        try:
            made = await self._on_thread(lambda: self._embed(distinct))
        except Exception:
            if len(together) == 1:
                raise
            for wanted in together:
                wanted.is_alone = True
            return
        vectors = dict(zip(distinct, made, strict=True))
        for wanted in together:
            wanted.vectors = [vectors[text] for text in wanted.texts]
            if wanted in self._waiting:  # else its read was cancelled meanwhile
                self._waiting.remove(wanted)
