"""Memory behind the methods of AsyncMemory, so that one test body runs against both."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar, cast

import anyio.to_thread

from pixelmemory import AsyncMemory, Memory
from pixelmemory.projection.pixeltable.internals import thread_released

T = TypeVar("T")

#: facade -> the event loop its tests run in
FACADES = {"Memory": "asyncio", "AsyncMemory on asyncio": "asyncio", "AsyncMemory on trio": "trio"}


class _OnThreads:
    """Calls each method of a Memory on a worker thread."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._memory, "close" if name == "aclose" else name)
        if not inspect.ismethod(value):
            return value
        method: Callable[..., Any] = value
        if inspect.isgeneratorfunction(method):

            async def iterate(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
                for each in await anyio.to_thread.run_sync(lambda: list(method(*args, **kwargs))):
                    yield each

            return iterate

        def call(*args: Any, **kwargs: Any) -> Awaitable[Any]:
            return anyio.to_thread.run_sync(functools.partial(method, *args, **kwargs))

        return call


async def open_facade(facade: str, *args: Any, **kwargs: Any) -> AsyncMemory:
    """Open a store by the facade's way, with the arguments of :class:`pixelmemory.Memory`."""
    if facade != "Memory":
        return await AsyncMemory.open(*args, **kwargs)
    memory = await anyio.to_thread.run_sync(functools.partial(Memory, *args, **kwargs))
    return cast(AsyncMemory, _OnThreads(memory))


async def with_pixeltable(run: Callable[[], T]) -> T:
    """Use Pixeltable's own API beside an event loop: on a worker thread, whose event loop is closed afterwards."""
    return await anyio.to_thread.run_sync(thread_released()(run))
