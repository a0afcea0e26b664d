"""What a process does with its stores while keys are pressed; for scripts of ``test_engine_interrupts``."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import gc
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pixelmemory import Memory
from tests.harness import engine_udfs
from tests.harness.engine_tools import open_memory, options_at, vector
from tests.harness.keys import Keys

__all__ = ["every_step", "obstacles", "storm"]

#: no wait ends by itself
FOR_EVER: dict[str, Any] = {"wait_timeout_seconds": 10_000.0, "lag_timeout_seconds": 10_000.0}
#: a process that hangs shows where
HANG_SECONDS = 90.0
#: finalizers: an interrupt that comes into one is pressed again afterwards
DROPS = ("drop", "drop a cycle")


class _Storm:
    """Random calls, each of which a key may interrupt; and what they leave."""

    def __init__(self, home: str, name: str, seed: int) -> None:
        self._home, self._name = home, name
        self.source = random.Random(seed)
        self.keys = Keys(seed, (0.0, 0.0003, 0.001, 0.003, 0.02, 0.1, 0.5))
        self.memory: Memory | None = None
        self.acknowledged: set[str] = set()
        self.erased: set[str] = set()
        self.batches: list[list[str]] = []
        self.interrupted: Counter[str] = Counter()
        self.swallowed: Counter[str] = Counter()
        self._number = 0

    def open(self) -> Memory:
        self.memory = None
        self.memory = open_memory(self._home, self._name, segment_bytes_max=65_536)
        return self.memory

    @property
    def opened(self) -> Memory:
        assert self.memory is not None
        return self.memory

    def calls(self) -> dict[str, tuple[int, Callable[[], object]]]:
        """What may be done, and how often."""
        return {
            "add": (30, lambda: self._add(1)),
            "add several": (20, lambda: self._add(4)),
            "search": (15, lambda: self.opened.search(limit=5)),
            "get": (10, lambda: self.opened.get_memory("1-0", consistency="eventual")),
            "flush": (8, lambda: self.opened.flush()),
            "erase": (2, self._erase),
            "compact": (1, lambda: self.opened.compact()),
            "close": (3, lambda: self.opened.close()),
            "reopen": (3, self._reopen),
            "with": (2, self._with),
            "drop": (2, self._drop),
            "drop a cycle": (2, self._drop_a_cycle),
        }

    def _add(self, count: int) -> None:
        self._number += 1
        ids = [f"{self._number}-{n}" for n in range(count)]
        self.batches.append(ids)
        self.opened.add_entries([{"content": "x", "memory_id": i, "embedding": vector(self._number)} for i in ids])
        self.acknowledged.update(ids)

    def _erase(self) -> None:
        if self.acknowledged:
            memory_id = self.acknowledged.pop()
            self.erased.add(memory_id)
            self.opened.erase_memory(memory_id)

    def _reopen(self) -> None:
        self.opened.close()
        self.open()

    def _with(self) -> None:
        with self.opened as memory:
            memory.search(limit=3)

    def _drop(self) -> None:
        self.memory = None

    def _drop_a_cycle(self) -> None:
        cycle: list[object] = [self.memory]
        cycle.append(cycle)
        self.memory = None
        del cycle
        gc.collect()

    def step(self, name: str, call: Callable[[], object]) -> None:
        """One call; with the store open, whatever became of it."""
        if self.memory is None or self.memory._loop is None:
            self.open()
        keys = self.keys
        before = keys.raised - keys.arrived - keys.dropped
        self.interrupted[name] += keys.during(call)
        if name not in DROPS:
            self.swallowed[name] += keys.raised - keys.arrived - keys.dropped - before

    def found(self) -> set[str]:
        """What the store holds."""
        memory = self.open() if self.memory is None or self.memory._loop is None else self.memory
        return {record["memory_id"] for record in memory.search(limit=1_000_000)}


def storm(home: str, name: str, seed: int, interrupts: int) -> dict[str, Any]:
    """Random calls until ``interrupts`` of them were interrupted. Run in a process of its own."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    one = _Storm(home, name, seed)
    one.open()
    calls = one.calls()
    names, weights = list(calls), [weight for weight, _ in calls.values()]
    while one.keys.arrived < interrupts:
        (name,) = one.source.choices(names, weights)
        one.step(name, calls[name][1])
    one.keys.stop()
    found = one.found()
    one.opened.add_entry("usable", memory_id="usable", embedding=vector(1))
    health = list(one.opened.health())
    one.opened.close()
    one.memory = None
    whole = [ids for ids in one.batches if not one.erased.intersection(ids)]
    return {
        "interrupted": one.interrupted,
        "acknowledged": len(one.acknowledged),
        "lost": sorted(one.acknowledged - found),
        "torn": [ids for ids in whole if found & set(ids) and not set(ids) <= found],
        "swallowed": sorted((+one.swallowed).items()),
        "health": health,
    }


# ---------------------------------------------------------------------------------------------------------- every step


def _interrupted_at(step: int, call: Callable[[], object]) -> tuple[bool, bool]:
    """Whether ``call`` reached its step ``step``, where Ctrl-C came, and whether that came out of it.

    Steps are where Python looks for signals.
    """
    steps, arrived = 0, False

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal steps
        steps += event in ("call", "return", "c_return")
        if steps == step:
            sys.setprofile(None)
            raise KeyboardInterrupt

    try:
        sys.setprofile(count)
        call()
        sys.setprofile(None)
    except KeyboardInterrupt:
        arrived = True
    return steps >= step, arrived


def every_step(home: str, name: str, stride: int) -> dict[str, int]:
    """Ctrl-C at each step of the main thread's in each kind of call; at how many there were of each.

    Of the calls after which the store is opened again, which takes time, not at each: at an open's each ``stride``-th.

    After each the store is used, closed and opened again: a lock that is left behind would hang the next call.
    """
    handles: list[Memory] = []
    #: what Python dropped: at the first steps of a finalizer nobody can keep it
    dropped: list[object] = []
    sys.unraisablehook = lambda what: dropped.append(what.exc_type)

    def opened() -> Memory:
        handles[:] = [open_memory(home, name)]
        return handles[0]

    def add() -> None:
        handles[0].add_entry("x", embedding=vector(1))

    calls: dict[str, Callable[[], object]] = {
        "add": add,
        "search": lambda: handles[0].search(consistency="eventual"),
        "close": lambda: handles[0].close(),
        "open": opened,
        "drop": handles.clear,
    }
    answers: dict[str, int] = {}
    for which, call in calls.items():
        step = 1
        opened()
        while True:
            if which == "open":
                handles[0].close()
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            dropped.clear()
            try:
                was_reached, arrived = _interrupted_at(step, call)
                if was_reached and not arrived and not dropped:  # it came into a finalizer, and comes again
                    time.sleep(HANG_SECONDS)
            except KeyboardInterrupt:
                was_reached = True
            if not was_reached:
                break
            answers[which] = answers.get(which, 0) + 1
            if which in ("add", "search"):
                step += 1
                add()
                continue
            step += stride if which == "open" else (stride + 3) // 4
            if which == "close":
                handles[0].close()
            opened()
            add()
        if handles:
            handles[0].close()
    return answers


# ----------------------------------------------------------------------------------------------------------- obstacles


@contextlib.contextmanager
def _held_projector(memory: Memory) -> Iterator[None]:
    engine = memory._memory._engine
    assert engine is not None
    assert engine._store is not None
    go_on = threading.Event()
    engine._store.projection.projector.request(go_on.wait)
    try:
        yield
    finally:
        go_on.set()


@contextlib.contextmanager
def _held_start() -> Iterator[None]:
    """The start of the database is another's."""
    file = os.open(Path(os.environ["PIXELTABLE_HOME"], ".pixelmemory-start.lock"), os.O_RDWR | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def _held(gate: threading.Event) -> Iterator[None]:
    gate.clear()
    try:
        yield
    finally:
        gate.set()


def obstacles(home: str, name: str) -> dict[str, Any]:
    """Calls that cannot end by themselves, and a key during each: which of them it has ended, and what was found then.

    The obstacle is in the way until the call has ended: a call that waits for it in spite of the key hangs.
    """
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    keys = Keys(1, (0.4,))
    answers: dict[str, Any] = {}

    def opened(which: str, **more: Any) -> Memory:
        return open_memory(home, f"{name}_{which}", **FOR_EVER, **more)

    def modelled(**more: Any) -> Memory:
        options = options_at(home, vector_cache=False, **FOR_EVER, **more)
        return Memory(f"{name}_model", None, {"function": engine_udfs.embed_through_gates}, options=options)

    for which, call in {
        "search": lambda memory: memory.search(consistency=memory.last_lsn),
        "flush": lambda memory: memory.flush(),
        "add": lambda memory: memory.add_entries([{"content": "no room", "embedding": vector(2)}] * 2),
        "close": lambda memory: memory.close(),
        "with": _search_in_a_block,
    }.items():
        memory = opened(which, lag_events_max=2)
        with _held_projector(memory):
            memory.add_entry("kept", embedding=vector(1))
            was_interrupted = keys.during(lambda: call(memory))  # noqa: B023
        memory.close()
        with opened(which, lag_events_max=2) as memory:
            answers[which] = [was_interrupted, memory.count()]

    with _held_start():
        was_interrupted = keys.during(lambda: opened("start").close())
    with opened("start") as memory:
        answers["open: start of the database"] = [was_interrupted, memory.count()]

    modelled().close()
    with _held(engine_udfs.model_gate):
        was_interrupted = keys.during(lambda: modelled().close())
    with modelled() as memory:
        memory.add_entry("kept")
        answers["open: model"] = [was_interrupted, memory.count()]
    with _held(engine_udfs.text_gate):
        was_interrupted = keys.during(lambda: modelled(rebuild=True).close())
    with modelled() as memory:
        answers["open: rebuild"] = [was_interrupted, memory.count()]
    keys.stop()
    time.sleep(0.1)
    return answers


def _search_in_a_block(memory: Memory) -> None:
    with memory:
        memory.search(consistency=memory.last_lsn)
