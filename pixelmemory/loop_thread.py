"""An event loop on a thread of its own, and calls into it that Ctrl-C ends at any moment.

Python raises KeyboardInterrupt between any two steps of the main thread. In ``threading.Condition``, and so in
``concurrent.futures.Future``, ``threading.Event`` and ``Thread.start``, there are steps after which a lock is held that
nobody releases any more: the next who needs it, here the loop, hangs for ever. Therefore the caller's thread does
nothing but what is one step of the interpreter's (an attribute, ``deque.append``, one primitive lock), or what may be
done twice. All else is done by the loop's thread, which no signal reaches.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Generic, TypeVar, cast

import anyio

from pixelmemory.errors import StoreClosedError
from pixelmemory.interrupts import launch, start_new_thread

__all__ = ["Call", "LoopThread", "Place"]

T = TypeVar("T")


class Place:
    """What a handle holds of a loop; given back where the handle is gone."""

    __slots__ = ("__weakref__", "number")

    def __init__(self) -> None:
        self.number = next(_numbers)


_numbers = itertools.count()


class Call(Generic[T]):
    """One call of a handle's: made on any thread, run in the loop."""

    __slots__ = ("_error", "_is_done", "_over", "_result", "_run", "_scope", "_started", "cancelled", "leaves", "place")

    def __init__(self, place: int, run: Callable[[], Coroutine[Any, Any, T]], *, leaves: bool = False) -> None:
        #: the number of its handle's
        self.place = place
        #: whether it gives the place back: it is not refused, and not cancelled
        self.leaves = leaves
        #: the caller does not wait any more; set on any thread, seen by the loop when it receives the call
        self.cancelled = False
        self._run = run
        self._started = False
        self._scope: anyio.CancelScope | None = None
        self._is_done = False
        self._result: T | None = None
        self._error: BaseException | None = None
        #: held until the call is over
        self._over = threading.Lock()
        self._over.acquire()

    def wait(self, at_most_seconds: float | None = None) -> bool:
        """Whether the call is over; once. One step, so that Ctrl-C finds it waiting or done."""
        return self._over.acquire(timeout=-1 if at_most_seconds is None else at_most_seconds)

    def outcome(self) -> T:
        """What the call returned or raised; after :meth:`wait`."""
        try:
            if self._error is not None:
                raise self._error
            if not self._is_done:
                raise StoreClosedError("the store was closed during the call; a write may or may not be recorded")
            return cast("T", self._result)
        finally:
            del self  # an error's traceback holds this frame

    # -- loop

    async def run(self) -> None:
        """Run it to its end, whichever way."""
        self._started = True
        try:
            with anyio.CancelScope() as self._scope:
                if self.cancelled:
                    return
                self._result = await self._run()
                self._is_done = True
        except asyncio.CancelledError:  # the loop ends
            self._is_done = self.leaves
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            self._error = error
        finally:
            self._over.release()

    def cancel(self) -> None:
        """End it early."""
        self.cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    def refuse(self, error: BaseException | None) -> None:
        """It is not run any more, because of ``error``; None: the store is closed. Who leaves has left."""
        if not self._started:
            self._started = True
            if self.leaves:
                self._is_done = True
            else:
                self._error = error or StoreClosedError("the store is closed")
            self._over.release()


class LoopThread:
    """The event loop of one store; the handles of the store share it, and the last one that leaves ends it."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._was_started = False
        #: places that are taken, by their number; changed under ``_loops_lock``
        self._places: dict[int, weakref.ref[Place]] = {}
        #: places that are gone, perhaps without a :meth:`leave`
        self._gone = deque[weakref.ref[Place]]()
        #: calls that are new, and calls that were cancelled
        self._inbox = deque[Call[Any]]()
        #: calls that run -> their task; loop
        self._running: dict[Call[Any], asyncio.Task[None]] = {}
        #: set by the thread
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ident: int | None = None
        self._context: Context
        self._stop: anyio.Event
        #: whether calls are begun; loop
        self._serving = False
        self._ended = False
        #: why the loop could not run
        self._failure: BaseException | None = None
        #: held until the thread is done
        self._thread_over = threading.Lock()
        self._thread_over.acquire()

    @classmethod
    def borrow(cls, store: str, place: Place) -> LoopThread:
        """The loop of ``store``, a path, with ``place`` taken in it; :meth:`leave` gives it back."""
        with _loops_lock:
            loop = _loops.get(store)
            if loop is None:
                loop = _loops[store] = cls(store)
            loop._places[place.number] = weakref.ref(place, loop._gone.append)
            return loop

    def is_here(self) -> bool:
        """Whether the calling thread is the loop's own."""
        return threading.get_ident() == self._ident

    def call(self, place: Place, method: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
        """Run ``method`` in the loop and wait for it; Ctrl-C cancels it.

        Raises:
            StoreClosedError: ``place`` was given back.
        """
        call = Call(place.number, partial(method, *args, **kwargs))
        try:
            self._post(call)
            call.wait()
        except BaseException:
            call.cancelled = True
            try:
                self._post(call)
            except (KeyboardInterrupt, RuntimeError):  # a second one; or no thread could be started
                self._inbox.append(call)
            raise
        return call.outcome()

    def leave(
        self, place: Place, last_words: Callable[[], Coroutine[Any, Any, None]], *, cancel: bool
    ) -> Call[bool | None]:
        """Give ``place`` back, once its calls are over; not waited for. May be done several times.

        Args:
            last_words: run in the loop before.
            cancel: whether its calls are cancelled first.

        Returns:
            Its result is whether the loop ends with it, see :meth:`wait_for_end`; None where the loop ended before.
        """
        number = place.number
        call: Call[bool | None] = Call(number, partial(self._leave, number, last_words, cancel=cancel), leaves=True)
        self._post(call)
        return call

    def wait_for_end(self, at_most_seconds: float) -> None:
        """Wait until the thread has ended."""
        if self._thread_over.acquire(timeout=at_most_seconds):
            self._thread_over.release()

    def _post(self, call: Call[Any]) -> None:
        """Hand ``call`` to the loop; again, where it was cancelled. Takes no lock: finalizers leave, too."""
        self._inbox.append(call)
        if not self._was_started:
            self._was_started = True
            try:
                start_new_thread(launch, (self._run, "pixelmemory-loop"))
            except RuntimeError:  # the system gives none
                self._was_started = False
                raise
        if self._loop is not None:  # else it looks into its inbox as it starts
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._receive, context=self._context)
        if self._ended:
            self._refuse_all()

    def _refuse_all(self) -> None:
        with suppress(IndexError):
            while True:
                self._inbox.popleft().refuse(self._failure)

    # -- loop

    def _run(self) -> None:
        try:
            anyio.run(self._serve)
        except BaseException as error:  # noqa: BLE001 - it is the callers'
            self._failure = error
        finally:
            with _loops_lock:
                if _loops.get(self._store) is self:
                    del _loops[self._store]
            self._ended = True
            self._refuse_all()
            self._thread_over.release()

    async def _serve(self) -> None:
        self._ident = threading.get_ident()
        self._stop = anyio.Event()
        self._context = copy_context()
        self._loop = asyncio.get_running_loop()
        self._serving = True
        try:
            self._receive()
            await self._stop.wait()
        finally:
            self._serving = False  # the loop ends its tasks: one that is begun now would neither run nor be ended

    def _receive(self) -> None:
        """Begin the calls that are new, cancel those that come again."""
        while self._serving and self._inbox:  # the rest is refused once the loop has ended
            call = self._inbox.popleft()
            if call in self._running:
                if call.cancelled:
                    call.cancel()
            elif call.cancelled or not (call.leaves or call.place in self._places):
                call.refuse(None)
            else:
                self._begin(call)
        while self._serving and self._gone:
            gone = self._gone.popleft()
            for number in [number for number, place in self._places.items() if place is gone]:
                self._begin(Call(number, partial(self._leave, number, _nothing, cancel=True), leaves=True))

    def _begin(self, call: Call[Any]) -> None:
        assert self._loop is not None
        task = self._running[call] = self._loop.create_task(call.run())

        def over(_: object) -> None:
            del self._running[call]
            call.refuse(None)  # where the loop's end came before its beginning

        task.add_done_callback(over)

    async def _leave(self, place: int, last_words: Callable[[], Coroutine[Any, Any, None]], *, cancel: bool) -> bool:
        running = {call: task for call, task in self._running.items() if call.place == place and not call.leaves}
        if cancel:
            for call in running:
                call.cancel()
        if running:
            await asyncio.wait(running.values())
        try:
            await last_words()
        finally:
            with _loops_lock:
                self._places.pop(place, None)
                is_last = not self._places
                if is_last and _loops.get(self._store) is self:
                    del _loops[self._store]
            if is_last:
                self._stop.set()
        return is_last


async def _nothing() -> None:
    pass


#: by the path of the store
_loops: dict[str, LoopThread] = {}
_loops_lock = threading.Lock()


def _after_fork_in_child() -> None:
    global _loops_lock
    _loops_lock = threading.Lock()
    _loops.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
