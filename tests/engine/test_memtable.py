"""The events that are durable and not in the tables yet, held against a plain list of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pixelmemory.engine.memtable import Memtable
from pixelmemory.memory.events import MemoryAdded, MemoryDeleted, MemoryEvent, MemoryUpdated

events = st.builds(
    lambda make, namespace, memory_id: make(namespace, memory_id),
    st.sampled_from(
        [lambda n, m: MemoryAdded(n, m, "text", 1), lambda n, m: MemoryUpdated(n, m, "new"), MemoryDeleted]
    ),
    st.sampled_from(["ann", "bob"]),
    st.sampled_from("xy"),
)
steps = st.lists(st.one_of(st.lists(events, min_size=1, max_size=5), st.integers(0, 20)), max_size=12)


@given(steps)
def test_it_is_the_end_of_the_log(steps: list[list[MemoryEvent] | int]) -> None:
    table = Memtable(1_000_000)
    log: list[MemoryEvent] = []
    watermark = 0
    for step in steps:
        if isinstance(step, int):
            watermark = max(watermark, min(step, len(log)))
            table.forget(watermark)
        else:
            log += step
            table.add(len(log), step)
        left = [(lsn, event) for lsn, event in enumerate(log, 1) if lsn > watermark]
        assert table.is_empty is (not left)
        for namespace in ("ann", "bob"):
            mine = [(lsn, event) for lsn, event in left if event.namespace == namespace]
            found = table.events([namespace], 100)
            assert found is not None
            assert sorted((stored.lsn, stored.event) for stored in found) == mine
            assert table.last_lsn(namespace) == max((lsn for lsn, _ in mine), default=0)
            for memory_id in "xy":
                own = [(lsn, event) for lsn, event in mine if event.memory_id == memory_id]
                of_it = table.events_of((namespace, memory_id))
                assert of_it is not None
                assert [(stored.lsn, stored.event) for stored in of_it] == own
                exists = None if not own else not isinstance(own[-1][1], MemoryDeleted)
                assert table.exists((namespace, memory_id)) is exists


def test_its_bytes_are_bounded() -> None:
    """What is beyond them is known by its id alone, so its namespace gives no events; others do."""
    table = Memtable(4000)
    table.add(1, [MemoryAdded("ann", "x", "short", 1)])
    table.add(3, [MemoryAdded("bob", "x", "a" * 3000, 1), MemoryUpdated("bob", "y", "b" * 3000)])
    assert table.events(["bob"], 100) is None
    assert table.events_of(("bob", "x")) is None
    assert table.exists(("bob", "x"))
    assert [stored.lsn for stored in table.events(["ann"], 100) or []] == [1]
    table.forget(3)
    assert table.is_empty
    assert table.events(["bob"], 100) == []
    table.add(4, [MemoryAdded("bob", "z", "fits again", 1)])
    assert [stored.lsn for stored in table.events(["bob"], 100) or []] == [4]


def test_a_load_into_one_namespace_leaves_room_for_the_others() -> None:
    table = Memtable(40_000)
    table.add(100, [MemoryAdded("bob", str(n), "a" * 1000, 1) for n in range(100)])
    assert table.events(["bob"], 1000) is None
    table.add(101, [MemoryAdded("ann", "x", "b" * 1000, 1)])
    assert [stored.lsn for stored in table.events(["ann"], 100) or []] == [101]


def test_too_many_events_of_a_namespace_are_not_given() -> None:
    table = Memtable(1_000_000)
    table.add(3, [MemoryAdded("ann", str(n), "text", 1) for n in range(3)])
    assert table.events(["ann"], 2) is None
    assert len(table.events(["ann"], 3) or []) == 3
    assert len(table.events_of(("ann", "1")) or []) == 1
