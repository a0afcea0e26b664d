"""model: a state machine over the whole engine, with crashes, reopens, rebuilds, clock steps and cancelled calls.

The model is a dict a namespace, in order of creation. Segments are tiny, so that every few events start another.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import anyio
import anyio.lowlevel
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from pixelmemory import AsyncMemory, Layout, MemoryExistsError
from tests.harness.engine_oracle import check_store
from tests.harness.engine_tools import async_memory, vector
from tests.harness.fault_report import LONG_FORM, FaultReport, timed_rounds

T = TypeVar("T")

NAMESPACES = st.sampled_from(["a", "b", "ü/ü"])
IDS = st.sampled_from([f"id {n}" for n in range(6)])
CONTENTS = st.sampled_from(["", "tea", "coffee", "tea\nand coffee", "x" * 3000, "ünïcödé 🍵"])
METADATA: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"tag": st.sampled_from(["x", "y", None, 1, 1.5, ["x", "z"]])}),
    st.just({"b": {"deep": [1, {"er": "x"}]}, "a": 2**60}),
)


class _Memory(NamedTuple):
    content: str
    metadata: dict[str, Any]
    #: which of the vectors it has
    number: int


class StoreMachine(RuleBasedStateMachine):
    """One store and its model; the test makes a subclass with ``home``, ``backend`` and ``options``."""

    home: ClassVar[Path]
    prefix: ClassVar[str]
    backend: ClassVar[str]
    options: ClassVar[dict[str, Any]]
    report: ClassVar[FaultReport]
    numbers: ClassVar[itertools.count[int]]

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.portal = self.stack.enter_context(start_blocking_portal(self.backend))
        self.name = f"{self.prefix}_{next(self.numbers)}"
        self.model: dict[str, dict[str, _Memory]] = {}
        self.vectors = itertools.count()
        real, self.clock_step_seconds = time.time_ns, 0
        time.time_ns = lambda: real() + self.clock_step_seconds * 10**9
        self.stack.callback(setattr, time, "time_ns", real)
        self.memory: AsyncMemory
        self._open()

    # -- the store

    def _run(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async def within_a_minute() -> T:
            with anyio.fail_after(60):
                return await call()

        return self.portal.call(within_a_minute)

    def _open(self, **changes: Any) -> None:
        options = {"segment_bytes_max": 4096, "batch_events_max": 7, "linger_seconds": 0.0, **self.options, **changes}
        self.memory = async_memory(self.home, self.name, **options)
        self._run(self.memory._open)

    def _in(self, namespace: str) -> dict[str, _Memory]:
        return self.model.setdefault(namespace, {})

    def _new(self, content: str, metadata: dict[str, Any]) -> _Memory:
        return _Memory(content, metadata, next(self.vectors))

    def teardown(self) -> None:
        """Compare all there is, through the engine and past it."""
        try:
            for namespace in list(self.model):
                self._compare(namespace)
            self._run(self.memory.flush)
            rows = check_store(self.home, self.name)
            assert {(key, row.content) for key, row in rows.items()} == {
                ((namespace, memory_id), one.content)
                for namespace, memories in self.model.items()
                for memory_id, one in memories.items()
            }
            assert self._run(self.memory.health).ok
            self._run(self.memory.aclose)
        finally:
            self.stack.close()

    # -- writing

    @rule(namespace=NAMESPACES, memory_id=IDS, content=CONTENTS, metadata=METADATA)
    def add(self, namespace: str, memory_id: str, content: str, metadata: dict[str, Any]) -> None:
        """With an id of one's own: refused where it exists."""
        new, known = self._new(content, metadata), self._in(namespace)

        def call() -> Coroutine[Any, Any, str]:
            return self.memory.add_entry(
                content, namespace, metadata, memory_id=memory_id, embedding=vector(new.number)
            )

        if memory_id in known:
            with pytest.raises(MemoryExistsError):
                self._run(call)
        else:
            assert self._run(call) == memory_id
            known[memory_id] = new

    @rule(namespace=NAMESPACES, contents=st.lists(CONTENTS, max_size=4), taken=st.none() | IDS)
    def add_entries(self, namespace: str, contents: list[str], taken: str | None) -> None:
        """Without ids, and perhaps one of one's own: all of them, or none."""
        known = self._in(namespace)
        new = [self._new(content, {}) for content in contents]
        entries: list[dict[str, Any]] = [{"content": one.content, "embedding": vector(one.number)} for one in new]
        if taken is not None and entries:
            entries[-1]["memory_id"] = taken
            if taken in known:
                with pytest.raises(MemoryExistsError):
                    self._run(lambda: self.memory.add_entries(entries, namespace))
                return
        ids = self._run(lambda: self.memory.add_entries(entries, namespace))
        assert len(set(ids)) == len(new)
        known |= dict(zip(ids, new, strict=True))

    @rule(namespace=NAMESPACES, memory_id=IDS, content=st.none() | CONTENTS, metadata=st.none() | METADATA)
    def update(self, namespace: str, memory_id: str, content: str | None, metadata: dict[str, Any] | None) -> None:
        known = self._in(namespace)
        number = next(self.vectors)
        embedding = None if content is None else vector(number)
        done = self._run(
            lambda: self.memory.update_memory(memory_id, namespace, content, metadata, embedding=embedding)
        )
        assert done == (memory_id in known)
        if done:
            self._apply_update(known, memory_id, content, metadata, number)

    def _apply_update(
        self,
        known: dict[str, _Memory],
        memory_id: str,
        content: str | None,
        metadata: dict[str, Any] | None,
        number: int,
    ) -> None:
        old = known[memory_id]
        if content is not None:
            old = old._replace(content=content, number=number)
        known[memory_id] = old if metadata is None else old._replace(metadata=metadata)

    @rule(namespace=NAMESPACES, memory_id=IDS)
    def delete(self, namespace: str, memory_id: str) -> None:
        known = self._in(namespace)
        assert self._run(lambda: self.memory.delete_memory(memory_id, namespace)) == (memory_id in known)
        known.pop(memory_id, None)

    @rule(namespace=NAMESPACES, memory_ids=st.lists(IDS, max_size=4))
    def delete_some(self, namespace: str, memory_ids: list[str]) -> None:
        known = self._in(namespace)
        count = self._run(lambda: self.memory.delete_memories(memory_ids, namespace))
        assert count == len(known.keys() & set(memory_ids))
        for memory_id in memory_ids:
            known.pop(memory_id, None)

    @rule(namespace=NAMESPACES, memory_ids=st.lists(IDS, max_size=3))
    def erase(self, namespace: str, memory_ids: list[str]) -> None:
        known = self._in(namespace)
        count = self._run(lambda: self.memory.erase_memories(memory_ids, namespace))
        assert len(known.keys() & set(memory_ids)) <= count <= len(set(memory_ids))
        for memory_id in memory_ids:
            known.pop(memory_id, None)
        self.report.add("model: erase")

    @rule()
    def compact(self) -> None:
        assert self._run(self.memory.compact) >= 0
        assert self._run(self.memory.compact) == 0
        self.report.add("model: compaction")

    @rule(namespace=NAMESPACES, memory_id=IDS, content=CONTENTS, steps=st.integers(0, 4))
    def cancelled_call(self, namespace: str, memory_id: str, content: str, steps: int) -> None:
        """An add or, where the id exists, an update that is cancelled after a few steps: done, or not, and not half."""
        known, number = self._in(namespace), next(self.vectors)
        exists = memory_id in known

        async def call() -> bool:
            returned = False
            async with anyio.create_task_group() as tasks:

                async def write() -> None:
                    nonlocal returned
                    if exists:
                        await self.memory.update_memory(memory_id, namespace, content, embedding=vector(number))
                    else:
                        await self.memory.add_entry(content, namespace, memory_id=memory_id, embedding=vector(number))
                    returned = True

                tasks.start_soon(write)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            return returned

        returned = self._run(call)
        self.report.add("model: cancelled calls")
        vectors = self._run(lambda: self.memory.search(namespace, vector=vector(number), min_score=0.9999, limit=1))
        done = bool(vectors) and vectors[0]["memory_id"] == memory_id
        assert done or not returned
        if done and exists:
            self._apply_update(known, memory_id, content, None, number)
        elif done:
            known[memory_id] = _Memory(content, {}, number)

    # -- reading

    @rule(namespace=NAMESPACES, memory_id=IDS)
    def get(self, namespace: str, memory_id: str) -> None:
        record = self._run(lambda: self.memory.get_memory(memory_id, namespace))
        expected = self._in(namespace).get(memory_id)
        assert (record is None) == (expected is None)
        if record is not None and expected is not None:
            assert (record["content"], record["metadata"]) == (expected.content, expected.metadata)

    def _compare(self, namespace: str) -> None:
        known = self._in(namespace)
        records = self._run(lambda: self.memory.search(namespace, limit=1000))
        assert [(record["memory_id"], record["content"], record["metadata"]) for record in records] == [
            (memory_id, one.content, one.metadata) for memory_id, one in reversed(known.items())
        ]

    @rule(namespace=NAMESPACES, limit=st.integers(0, 5))
    def search(self, namespace: str, limit: int) -> None:
        """Newest first; by vector; with a filter."""
        self._compare(namespace)
        known = self._in(namespace)
        found = self._run(lambda: self.memory.search(namespace, limit=limit, metadata_filter={"tag": "x"}))
        tagged = [
            memory_id
            for memory_id, one in reversed(known.items())
            if "tag" in one.metadata and (one.metadata["tag"] == "x" or one.metadata["tag"] == ["x", "z"])
        ]
        assert [record["memory_id"] for record in found] == tagged[:limit]
        for memory_id, one in itertools.islice(known.items(), 1):
            wanted = vector(one.number)
            (nearest,) = self._run(lambda: self.memory.search(namespace, vector=wanted, limit=1))  # noqa: B023
            assert nearest["memory_id"] == memory_id
            assert nearest["similarity_score"] == pytest.approx(1.0, abs=1e-5)

    @rule()
    def count(self) -> None:
        assert self._run(self.memory.count) == sum(map(len, self.model.values()))
        assert self._run(self.memory.namespaces) == sorted(name for name, known in self.model.items() if known)

    # -- faults

    @rule()
    def crash(self) -> None:
        """The handle lets go at once: nothing is drained."""
        engine = self.memory._engine
        assert engine is not None
        self._run(lambda: anyio.to_thread.run_sync(engine.abandon, self.memory._number))
        self.report.add("model: abandoned without a drain")
        self._open()

    @rule(rebuild=st.booleans())
    def reopen(self, rebuild: bool) -> None:
        self._run(self.memory.aclose)
        self._open(rebuild=rebuild)

    @precondition(lambda self: abs(self.clock_step_seconds) < 10**8)
    @rule(seconds=st.sampled_from([-86_400, -1, 3_600, 365 * 86_400]))
    def step_clock(self, seconds: int) -> None:
        self.clock_step_seconds += seconds
        self.report.add("clock_steps: step of the clock")

    @initialize()
    def begin(self) -> None:
        assert self._run(self.memory.count) == 0


@pytest.mark.parametrize(("backend", "layout"), [("asyncio", Layout.PER_NAMESPACE), ("trio", Layout.SHARED)])
def test_the_engine_equals_a_dict(
    backend: str, layout: Layout, tmp_path: Path, store_name: str, fault_report: FaultReport
) -> None:
    numbers = itertools.count()
    fields = {
        "home": tmp_path,
        "prefix": store_name,
        "backend": backend,
        "options": {"layout": layout},
        "report": fault_report,
        "numbers": numbers,
    }
    machine = type("Machine", (StoreMachine,), fields)
    for _ in timed_rounds("model", 1, 2):
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=8,
                stateful_step_count=60 if LONG_FORM else 25,
                derandomize=not LONG_FORM,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    fault_report.add("model: random lives", next(numbers))
