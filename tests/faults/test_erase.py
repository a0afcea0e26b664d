"""Erasing memories, and compacting the log: what they leave, what they count, and what stays as it was."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import msgspec
import numpy as np
import pytest

from pixelmemory import InvalidArgumentError, InvalidTypeError, Layout, ProjectionError, StoreClosedError
from pixelmemory.cli import main
from pixelmemory.faults import ERASE_FAULT_POINTS, LOG_FAULT_POINTS, PURGE_FAULT_POINTS, set_fault_hook
from pixelmemory.memory.erasure import Erasure
from pixelmemory.memory.identity import memory_key
from pixelmemory.projection.pixeltable.startup import connection_string
from pixelmemory.store.manifest import Manifest
from tests.harness.engine_lives import Life, Lives, canary_ids, lives
from tests.harness.engine_oracle import check_store, events_of
from tests.harness.engine_tools import async_memory, tables_of, vector
from tests.harness.engine_tools import open_memory as open_given
from tests.harness.fault_report import LONG_FORM, FaultReport
from tests.harness.refusals import accept_marked, refuse_marked

if TYPE_CHECKING:
    from pixelmemory import Memory
    from tests.conftest import OpenMemory

GIVEN = {"dimensions": 4}
SMALL: dict[str, Any] = {"batch_events_max": 5, "linger_seconds": 0.0, "segment_bytes_max": 16_384}
REMOVED = 4


def _types(folder: Path) -> list[int]:
    return [event.type_code for event in events_of(folder)]


def _hits(folder: Path, *needles: str) -> list[str]:
    return [
        f"{path}: {needle}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for needle in needles
        if needle.encode() in path.read_bytes()
    ]


def _all(memory: Memory, *namespaces: str) -> list[dict[str, Any]]:
    return [dict(record) for namespace in namespaces for record in memory.search(namespace, limit=10_000)]


@pytest.mark.anyio
async def test_an_erased_memory_is_gone_from_the_store(tmp_path: Path, store_name: str) -> None:
    async with async_memory(tmp_path, store_name) as memory:
        await memory.add_entry("a secret", memory_id="name-of-a-person", metadata={"k": "hidden"}, embedding=vector(1))
        await memory.update_memory("name-of-a-person", content="another secret", embedding=vector(2))
        kept = await memory.add_entry("what stays", metadata={"n": 1}, embedding=vector(3))
        assert await memory.erase_memory("name-of-a-person") is True
        assert await memory.get_memory("name-of-a-person") is None
        assert [record["content"] for record in await memory.search()] == ["what stays"]
        assert await memory.erase_memory("name-of-a-person") is False
        assert (await memory.health()).ok
        await memory.add_entry("a new life", memory_id="name-of-a-person", embedding=vector(4))
        assert await memory.count() == 2
        record = await memory.get_memory(kept)
        assert record is not None
        assert record["metadata"] == {"n": 1}
    assert not _hits(tmp_path / store_name, "secret", "hidden")
    assert _types(tmp_path / store_name) == [REMOVED, REMOVED, 1, REMOVED, 1]


def test_what_was_deleted_long_ago_can_be_erased(open_memory: OpenMemory, tmp_path: Path, store_name: str) -> None:
    with open_memory() as memory:
        memory.add_entry("forgotten words", memory_id="one")
        memory.add_entry("other words", memory_id="two")
        memory.delete_memory("one")
        memory.flush()
        assert _hits(tmp_path / store_name, "forgotten")
        assert memory.erase_memories(["one", "two", "three", "one"]) == 2
        assert not _hits(tmp_path / store_name, "forgotten", "other words")
        assert memory.count() == 0
        assert memory.erase_memories([]) == 0


def test_an_id_of_another_namespace_stays(open_memory: OpenMemory) -> None:
    with open_memory() as memory:
        for namespace in ("a", "b"):
            memory.add_entry(f"text of {namespace}", namespace, memory_id="same")
        assert memory.erase_memory("same", "a")
        assert not memory.erase_memory("same", "never held anything")
        found = [_all(memory, "a", "b")]
    with open_memory(rebuild=True) as memory:  # in the log as well as in the table
        found.append(_all(memory, "a", "b"))
    assert [[record["content"] for record in each] for each in found] == [["text of b"]] * 2


@pytest.mark.parametrize("layout", Layout)
def test_a_namespace_is_erased_whole(layout: Layout, open_memory: OpenMemory, tmp_path: Path, store_name: str) -> None:
    with open_memory(layout=layout) as memory:
        memory.add_entries([{"content": f"private {n}", "memory_id": f"m{n}"} for n in range(30)], "user 1")
        memory.add_entries([{"content": f"public {n}"} for n in range(30)], "user 2")
        memory.delete_memories(["m1", "m2"], "user 1")
        before = _all(memory, "user 2")
        assert memory.erase_namespace("user 1") == 30
        assert memory.erase_namespace("user 1") == 0
        assert memory.erase_namespace("nobody") == 0
        assert memory.namespaces() == ["user 2"]
        assert _all(memory, "user 2") == before
    assert not _hits(tmp_path / store_name, "private")
    with open_memory(layout=layout, rebuild=True) as memory:
        assert _all(memory, "user 1", "user 2") == before


def test_a_namespace_with_rows_that_no_id_names_is_erased_too(open_memory: OpenMemory) -> None:
    """A user's row under a key that ids map to is searched and not found by its id."""
    memory = open_memory()
    memory.add_entry("ours", "a")
    memory.get_namespace_table("a").insert(
        [{"memory_id": uuid.uuid5(uuid.NAMESPACE_DNS, "theirs"), "content": "theirs"}]
    )
    assert memory.count("a") == 2
    memory.erase_namespace("a")
    assert memory.search("a") == []
    assert memory.health().ok


@pytest.mark.anyio
async def test_a_close_does_not_wait_for_a_projector_that_is_stuck(tmp_path: Path, store_name: str) -> None:
    """The erase that waits for it ends, and the next open finishes it."""
    memory = async_memory(tmp_path, store_name)
    await memory._open()
    await memory.add_entry("a secret", memory_id="one", embedding=vector(1))
    engine = memory._engine
    assert engine is not None
    projector = engine.store().projection.projector
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go_on.wait()

    def hook(name: str) -> None:  # on the thread that erases
        if name == "erase.after_quarantine":
            projector.request(hold)
            held.wait()

    ended: list[str] = []

    async def erase() -> None:
        try:
            await memory.erase_memory("one")
        except StoreClosedError:
            ended.append("closed")
            go_on.set()

    set_fault_hook(hook)
    try:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(erase)
                await anyio.to_thread.run_sync(held.wait, abandon_on_cancel=True)
                await memory.aclose()
    finally:
        go_on.set()
        set_fault_hook(None)
    assert ended == ["closed"]
    manifest = Manifest.load(tmp_path / store_name)
    assert manifest is not None
    assert manifest.erasing is not None
    async with async_memory(tmp_path, store_name) as memory:
        assert (await memory.health()).ok
        assert await memory.count() == 0
    manifest = Manifest.load(tmp_path / store_name)
    assert manifest is not None
    assert manifest.erasing is None


def test_vectors_leave_the_cache_and_the_quarantine_is_emptied(
    open_memory: OpenMemory, tmp_path: Path, store_name: str, minilm_path: str
) -> None:
    with open_memory(embedding_config=minilm_path) as memory:
        memory.add_entry("the combination is 4711", memory_id="one")
        memory.add_entry("the weather is fine", memory_id="two")
        memory.flush()
        (store_folder := tmp_path / store_name).joinpath("quarantine", "repair-1").mkdir(parents=True)
        (store_folder / "quarantine" / "repair-1" / "events.jsonl").write_text("the combination is 4711")
        (store_folder / "quarantine" / "torn").write_text("combination")
        embedder = memory._memory._engine._store.embedder  # type: ignore[union-attr]
        assert embedder is not None
        gone, stays = embedder.embed_documents(["the combination is 4711", "the weather is fine"])
        vectors = b"".join(path.read_bytes() for path in (store_folder / "vectors").iterdir())
        assert gone.tobytes() in vectors
        memory.erase_memory("one")
        vectors = b"".join(path.read_bytes() for path in (store_folder / "vectors").iterdir())
        assert gone.tobytes() not in vectors
        assert stays.tobytes() in vectors
        assert not _hits(store_folder, "combination")
        assert [record["memory_id"] for record in memory.search(query="sunshine")] == ["two"]


def test_arguments_are_checked_before_anything_happens(open_memory: OpenMemory) -> None:
    memory = open_memory()
    memory.add_entry("text", memory_id="one")
    lsn = memory.last_lsn
    with pytest.raises(InvalidTypeError):
        memory.erase_memories("one")
    with pytest.raises(InvalidTypeError):
        memory.erase_memories(["one", 2])  # type: ignore[list-item]
    with pytest.raises(InvalidArgumentError):
        memory.erase_memory("one", "")
    with pytest.raises(InvalidTypeError):
        memory.erase_namespace(None)  # type: ignore[arg-type]
    assert memory.last_lsn == lsn
    assert memory.count() == 1
    memory.close()
    for call in (memory.compact, lambda: memory.erase_memory("one")):
        with pytest.raises(StoreClosedError):
            call()


def test_without_sql_nothing_is_begun(open_memory: OpenMemory, tmp_path: Path, store_name: str) -> None:
    with open_memory(direct_sql=False) as memory:
        memory.add_entry("still here", memory_id="one")
        with pytest.raises(ProjectionError, match="direct_sql"):
            memory.erase_memory("one")
        with pytest.raises(ProjectionError, match="direct_sql"):
            memory.erase_namespace("default_namespace")
        assert memory.health().ok
        assert memory.count() == 1
        memory.delete_memory("one")
        memory.compact()
        assert memory.count() == 0
    assert _types(tmp_path / store_name) == [REMOVED, REMOVED]


def test_verify_tells_of_an_erase_that_is_not_finished(
    open_memory: OpenMemory, tmp_path: Path, store_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_memory() as memory:
        memory.add_entries([{"content": "text", "memory_id": f"m{n}"} for n in range(3)])
        memory.erase_memory("m1")
        lsn = memory.last_lsn
    folder = tmp_path / store_name
    manifest = Manifest.load(folder)
    assert manifest is not None
    assert manifest.erasing is None
    msgspec.structs.replace(manifest, erasing=Erasure("default_namespace", ["m0"], lsn)).save(folder)
    assert main(["verify", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "2 events of them stand for what an erase" in printed
    assert "an erase is not finished" in printed
    with open_memory() as memory:
        assert [record["memory_id"] for record in memory.search()] == ["m2"]
    assert main(["verify", str(folder)]) == 0
    assert "not finished" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- compaction


def _history(memory: Memory, seed: int) -> None:
    """Adds, updates of content, metadata or both, deletes, and ids that live again."""
    source = random.Random(seed)
    known: set[tuple[str, str]] = set()
    for step in range(200):
        namespace, memory_id = source.choice("ab"), f"m{source.randrange(12)}"
        vector = [source.random() + 0.1 for _ in range(4)]
        if (namespace, memory_id) not in known:
            memory.add_entry(f"added {step}", namespace, {"n": step}, memory_id=memory_id, embedding=vector)
            known.add((namespace, memory_id))
        elif source.random() < 0.2:
            memory.delete_memory(memory_id, namespace)
            known.remove((namespace, memory_id))
        elif source.random() < 0.5:
            memory.update_memory(memory_id, namespace, metadata={"changed": step})
        else:
            memory.update_memory(memory_id, namespace, f"changed {step}", embedding=vector)


@pytest.mark.parametrize("layout", Layout)
def test_compaction_changes_no_memory(layout: Layout, open_memory: OpenMemory, tmp_path: Path, store_name: str) -> None:
    with open_memory(embedding_config=GIVEN, layout=layout, segment_bytes_max=4096) as memory:
        _history(memory, 1)
        before, lsn = _all(memory, "a", "b"), memory.last_lsn
        scores = memory.search("a", vector=[1.0, 0, 0, 0], limit=100)
        log_bytes = memory.stats().log_bytes
        saved = memory.compact()
        assert saved > 0
        assert memory.stats().log_bytes == log_bytes - saved
        assert memory.last_lsn == lsn
        assert memory.stats().log_events == lsn
        assert _all(memory, "a", "b") == before
        types = _types(tmp_path / store_name)
        assert len(types) == lsn
        assert types.count(1) == len(before)
        assert set(types) == {1, REMOVED}
        assert memory.compact() == 0
        # the log goes on
        memory.update_memory(before[0]["memory_id"], "a", metadata={"after": True})
        memory.delete_memory(before[1]["memory_id"], "a")
        before = _all(memory, "a", "b")
        scores = memory.search("a", vector=[1.0, 0, 0, 0], limit=100)
    with open_memory(embedding_config=GIVEN, layout=layout, rebuild=True) as memory:
        assert _all(memory, "a", "b") == before
        again = memory.search("a", vector=[1.0, 0, 0, 0], limit=100)
        assert [record["memory_id"] for record in again] == [record["memory_id"] for record in scores]


def test_compaction_takes_superseded_texts_out_of_the_cache(
    open_memory: OpenMemory, tmp_path: Path, store_name: str, minilm_path: str
) -> None:
    with open_memory(embedding_config=minilm_path) as memory:
        memory.add_entry("an old address", memory_id="one")
        memory.add_entry("a name", memory_id="two")
        memory.add_entry("a deleted remark", memory_id="three")
        memory.flush()
        memory.update_memory("one", content="a new address")
        memory.update_memory("two", metadata={"changed": True})
        memory.delete_memory("three")
        memory.compact()
        cache = memory._memory._engine._store.maintenance._cache  # type: ignore[union-attr]
        assert cache is not None
        found, _ = cache.get_many(["an old address", "a deleted remark", "a new address", "a name"])
        assert found.tolist() == [False, False, True, True]
        assert not _hits(tmp_path / store_name, "old address", "deleted remark")


def test_what_a_compaction_took_out_of_the_log_can_still_be_erased(
    open_memory: OpenMemory, tmp_path: Path, store_name: str
) -> None:
    """The tables keep old versions of rows whose memory the log does not know any more."""
    pixeltable = Path(os.environ["PIXELTABLE_HOME"])
    with open_memory() as memory:
        memory.add_entry("canary-4711 sang", memory_id="one")
        memory.add_entry("others", memory_id="two")
        memory.flush()
        memory.delete_memory("one")
        memory.compact()
        assert not _hits(tmp_path / store_name, "canary-4711")
        assert _canary_hits("canary-4711", pixeltable)
        assert memory.erase_memory("one") is False
        assert not _canary_hits("canary-4711", pixeltable)
        assert memory.count() == 1


@pytest.mark.parametrize("what", ["compacted", "erased"])
def test_a_projection_that_missed_what_was_taken_out_is_rebuilt(what: str, open_memory: OpenMemory) -> None:
    """The delete of a memory that an old copy of the tables still has is not in the log any more."""
    import psycopg

    with open_memory() as memory:
        memory.add_entries([{"content": f"text {n}", "memory_id": f"m{n}"} for n in range(5)])
        if what == "erased":
            assert memory.erase_memory("m1")
        else:
            assert memory.delete_memory("m1")
            memory.compact()
        expected = _all(memory, "default_namespace")
        # as an old copy has them
        row = {"memory_id": memory_key("m1"), "id_text": "m1", "content": "text 1", "lsn": 2}
        memory.get_namespace_table("default_namespace").insert([row])
        tables = tables_of(memory)
        state = tables.physical("state")
    with psycopg.connect(connection_string(), autocommit=True) as connection:
        connection.execute(f"UPDATE {state.name} SET {state.columns['checkpoint_lsn']} = 5")
    with open_memory() as memory:
        assert _all(memory, "default_namespace") == expected
        assert memory.health().ok


def test_memories_with_a_dead_letter_keep_their_history(
    open_memory: OpenMemory, tmp_path: Path, store_name: str
) -> None:
    with open_memory() as memory:
        memory.add_entry("first", memory_id="one")
        memory.add_entry("first", memory_id="two")
        memory.flush()
        refuse_marked(store_name)
        memory.update_memory("one", content="refused")
        memory.update_memory("one", metadata={"waits": True})
        memory.update_memory("two", content="second")
        memory.flush()
        assert not memory.health().ok
        memory.compact()
        assert _types(tmp_path / store_name) == [1, REMOVED, 2, 2, 1]
        accept_marked(store_name)
        assert memory.retry_dead_letters() == 2
        record = memory.get_memory("one")
        assert record is not None
        assert (record["content"], record["metadata"]) == ("refused", {"waits": True})


def test_an_erase_takes_dead_letters_with_it(open_memory: OpenMemory, tmp_path: Path, store_name: str) -> None:
    with open_memory() as memory:
        memory.add_entry("first", memory_id="one")
        memory.flush()
        refuse_marked(store_name)
        memory.update_memory("one", content="refused in a bottle")
        memory.update_memory("one", metadata={"waits": True})
        memory.flush()
        assert memory.stats().dead_letters == 2
        assert memory.erase_memory("one")
        assert memory.stats().dead_letters == 0
        assert memory.health().ok
        assert memory.get_memory("one") is None
        assert memory.count() == 0
        assert memory.add_entry("anew", memory_id="one") == "one"
        accept_marked(store_name)
        assert memory.retry_dead_letters() == 0
        assert memory.count() == 1
    assert not _hits(tmp_path / store_name, "bottle")


# ------------------------------------------------------------------------------------------------------------- canary


def _canary_hits(canary: str, *roots: Path, since: float = 0.0) -> list[str]:
    """Every file under ``roots`` that holds the canary, as text or as the numbers of its vector.

    Args:
        since: seconds since the epoch; files that were last written before are not read. The server's files are
            hundreds of megabytes, most of them of other tests.
    """
    seed = int(canary.rpartition("-")[2])
    needles = [canary.encode(), canary.encode("utf-16-le"), np.array(vector(seed + 10**6), "<f4").tobytes()]
    needles.append(np.array(vector(seed + 10**6), ">f4").tobytes())
    hits = []
    for root in roots:
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_mtime >= since:
                data = path.read_bytes()
                hits += [f"{path.relative_to(root)}: needle {n}" for n, needle in enumerate(needles) if needle in data]
    return hits


@pytest.fixture(scope="module")
def forked() -> Iterator[Lives]:
    with lives() as running:
        yield running


#: one of each kind of moment, for the short form
FEW_POINTS = [
    "manifest.after_write",
    "erase.after_intent",
    "rewrite.after_old_rename",
    "erase.after_log",
    "purge.committed",
    "purge.table_rewritten",
    "purge.wal_checkpoint",
]
ERASE_POINTS = [
    *(f"manifest.{moment}" for moment in ("before_write", "after_write", "after_rename", "after_folder_sync")),
    *ERASE_FAULT_POINTS,
    *(point for point in LOG_FAULT_POINTS if point.startswith("rewrite.")),
    # these tables are too small for an index; tests/store/test_purge.py has one
    *(point for point in PURGE_FAULT_POINTS if point != "purge.hnsw_built"),
]


def test_the_few_points_are_among_all() -> None:
    assert set(FEW_POINTS) < set(ERASE_POINTS)


@pytest.mark.parametrize("point", ["", *(ERASE_POINTS if LONG_FORM else FEW_POINTS)])
def test_erase_canary(point: str, tmp_path: Path, store_name: str, forked: Lives, fault_report: FaultReport) -> None:
    """erase_canary: a kill at each step of an erase; then nothing on disk holds what was erased."""
    pixeltable, started = Path(os.environ["PIXELTABLE_HOME"]), time.time() - 2
    seed = random.Random(point).randrange(10**6)
    home, name, canary = tmp_path, store_name, f"canary-{seed}"
    options = SMALL | {"layout": Layout.SHARED if seed % 2 else Layout.PER_NAMESPACE}
    life = Life(str(home), name, seed, options=options, chore="fill", canary=canary)
    assert forked.live(life).exit_code == 0
    assert _canary_hits(canary, home / name)
    assert len({hit.rpartition(" ")[2] for hit in _canary_hits(canary, pixeltable, since=started)}) >= 2
    # the manifest is saved twice by an open, and then by the erase
    nth = 3 if point.startswith("manifest") else 1
    life = msgspec.structs.replace(life, chore="erase", point=point, nth=nth)
    answer = forked.live(life)
    assert answer.exit_code == (-signal.SIGKILL if point else 0), (point, answer)
    if point:
        fault_report.add(f"erase_canary: SIGKILL at {point.partition('.')[0]}.*")
    with open_given(home, name, **options) as memory:
        memory.flush()
        if point.startswith("manifest") and _canary_hits(canary, home / name):
            # killed before the intent was durable: the call never began
            assert memory.erase_memories(canary_ids(canary), "b") == 3
        assert memory.health().ok, memory.health()
        # before the next erase, which would finish what the open has left
        assert _canary_hits(canary, home / name, pixeltable, since=started) == []
        assert memory.erase_memories(canary_ids(canary), "b") == 0
        check_store(home, name)
        assert memory.count() == 27
    assert _canary_hits(canary, home / name, pixeltable, since=started) == []
