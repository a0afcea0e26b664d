"""The one fold: its laws, and that the doctor's independent fold and the batches come to the same."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from pixelmemory.doctor.comparison import Fold
from pixelmemory.log.contract import StoredEvent
from pixelmemory.memory.events import MemoryAdded, MemoryDeleted, MemoryEvent, MemoryUpdated
from pixelmemory.memory.state import UNKNOWN, MemoryState
from pixelmemory.projection.changes import fold

ids = st.sampled_from(["a", "b"])
texts = st.sampled_from(["", "one", "two"])
json_texts = st.sampled_from([b"{}", b'{"a":1}', b'{"b":[null]}'])
vectors = st.none() | st.sampled_from([bytes(8), b"\1" * 8])
added = st.builds(MemoryAdded, st.just("n"), ids, texts, st.integers(0, 9), json_texts, vectors)
updated = st.builds(MemoryUpdated, st.just("n"), ids, st.none() | texts, st.none() | json_texts, vectors)
events = st.lists(added | updated | st.builds(MemoryDeleted, st.just("n"), ids), max_size=12)


def evolved(state: MemoryState | None, some: list[MemoryEvent]) -> MemoryState | None:
    for event in some:
        state = MemoryState.evolve(state, event)
    return state


def stored(some: list[MemoryEvent]) -> list[StoredEvent]:
    return [StoredEvent(lsn, bytes(16), lsn, event) for lsn, event in enumerate(some, 1)]


@given(st.none() | st.just(UNKNOWN) | st.builds(MemoryState, texts, st.integers(0, 9), json_texts, vectors), added)
def test_an_add_is_all_that_there_is(before: MemoryState | None, event: MemoryAdded) -> None:
    state = MemoryState.evolve(before, event)
    assert state is not None
    assert state.added(event.namespace, event.memory_id) == event
    assert MemoryState.evolve(state, MemoryDeleted("n", event.memory_id)) is None


@given(updated)
def test_an_update_of_nothing_is_nothing(event: MemoryUpdated) -> None:
    assert MemoryState.evolve(None, event) is None


@given(added, updated)
def test_an_update_leaves_what_it_does_not_name(before: MemoryAdded, event: MemoryUpdated) -> None:
    state = evolved(None, [before, event])
    assert state is not None
    assert state.created_at_us == before.created_at_us
    assert state.metadata_json == (before.metadata_json if event.metadata_json is None else event.metadata_json)
    text = (before.content, before.embedding) if event.content is None else (event.content, event.embedding)
    assert (state.content, state.embedding) == text, "a vector belongs to its text"


@given(events)
def test_the_doctors_own_fold_comes_to_the_same(some: list[MemoryEvent]) -> None:
    doctor = Fold(set())
    for each in stored(some):
        doctor.add(each)
    for memory_id in ("a", "b"):
        state = evolved(None, [event for event in some if event.memory_id == memory_id])
        found = doctor.memories.get(("n", memory_id))
        assert (state is None) is (found is None)
        if state is not None and found is not None:
            assert found.created_at_us == state.created_at_us
            for digest, value in (
                (found.content_digest, (state.content or "").encode()),
                (found.metadata_digest, state.metadata_json or b""),
            ):
                assert digest == hashlib.blake2b(value, digest_size=16).digest()


@given(events, st.integers(0, 12))
def test_batches_cut_anywhere_come_to_the_same(some: list[MemoryEvent], cut: int) -> None:
    """Applied to a table as the projection applies them: delete, insert, patch."""
    exists: set[str] = set()
    kept: list[MemoryEvent] = []
    for event in some:  # as a facade lets through
        if isinstance(event, MemoryAdded) is (event.memory_id in exists):
            continue
        kept.append(event)
        if isinstance(event, MemoryAdded):
            exists.add(event.memory_id)
        elif isinstance(event, MemoryDeleted):
            exists.discard(event.memory_id)
    rows: dict[str, MemoryState] = {}
    for part in (kept[:cut], kept[cut:]):
        for change in fold(stored(part)).values():
            if change.delete:
                del rows[change.memory_id]
            if change.insert:
                assert change.state is not None
                rows[change.memory_id] = change.state
            elif change.patch:
                row = rows[change.memory_id]
                patch = MemoryUpdated("n", change.memory_id, change.content, change.metadata_json, change.embedding)
                patched = MemoryState.evolve(row, patch)
                assert patched is not None
                rows[change.memory_id] = patched
    expected = {each: evolved(None, [event for event in kept if event.memory_id == each]) for each in ("a", "b")}
    assert rows == {memory_id: state for memory_id, state in expected.items() if state is not None}
