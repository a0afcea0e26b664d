"""What is asked of the event loop, asyncio's or trio's, on the way of every call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

import anyio
import anyio.lowlevel

__all__ = ["Signal", "poster_of", "running_loop_of", "signals_of"]

_logger = logging.getLogger("pixelmemory")


class Signal(Protocol):
    """Set once, in the loop; one task waits for it."""

    def is_set(self) -> bool: ...

    def set(self) -> object: ...

    async def wait(self) -> None: ...


class _Future:
    """A signal of asyncio's: one future where anyio's event is four objects and two more coroutines."""

    __slots__ = ("_future", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._future: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        if self._future is not None and not self._future.done():  # done: its task was cancelled
            self._future.set_result(None)

    async def wait(self) -> None:
        if not self._is_set:
            self._future = asyncio.get_running_loop().create_future()
            await self._future


def signals_of(loop: object) -> Callable[[], Signal]:
    """A maker of signals for ``loop``."""
    return _Future if isinstance(loop, asyncio.AbstractEventLoop) else anyio.Event


def running_loop_of(loop: object) -> Callable[[], object]:
    """A cheap way to tell the loop that runs here, of the kind of ``loop``; None where there is none."""
    if not isinstance(loop, asyncio.AbstractEventLoop):
        return lambda: anyio.lowlevel.current_token().native_token

    def current() -> object:
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            return None

    return current


def poster_of(loop: Any) -> Callable[..., None]:
    """A function that runs a callback in ``loop``, from any thread; nothing happens after the loop's end."""
    call = loop.call_soon_threadsafe if isinstance(loop, asyncio.AbstractEventLoop) else loop.run_sync_soon

    def post(callback: Callable[..., None], *args: object) -> None:
        try:
            call(callback, *args)
        except RuntimeError as error:  # the loop is gone, and with it everybody who waited
            _logger.debug("no event loop to report to: %s", error)

    return post
