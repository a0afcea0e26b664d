"""The projection can be deleted, replaced or left behind: what the log holds comes back to the last field."""

from __future__ import annotations

import datetime as dt
import json
import random
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pixeltable as pxt
import pytest

from pixelmemory import CheckpointAheadError, Layout, Memory, MemoryExistsError
from tests.harness.embedders import embed_words, embedded, words_vector
from tests.harness.engine_tools import answer_of, pixeltable_home, run_script, tables_path, vector
from tests.harness.engine_tools import open_memory as given_memory

if TYPE_CHECKING:
    from tests.conftest import OpenMemory

WORDS = {"function": embed_words}
SPACES = ("default_namespace", "Zwölf Affen", "zwölf affen", "emptied")
START = dt.datetime(2024, 3, 1, tzinfo=dt.UTC)


class Model:
    """A store in plain Python, driven beside the real one."""

    def __init__(self) -> None:
        self.spaces: dict[str, dict[str, dict[str, Any]]] = {space: {} for space in SPACES}

    def live(self, mem: Memory, seed: int, steps: int = 120) -> None:
        """Random adds, batches, updates and deletes on both."""
        draw = random.Random(seed)
        for step in range(steps):
            space = draw.choice(SPACES)
            here = self.spaces[space]
            known = list(here)
            match draw.choice(["add", "add", "batch", "update", "metadata", "both", "delete", "again", "many"]):
                case "add":
                    self._add(mem, space, [self._entry(draw, f"{seed}-{step}")])
                case "batch":
                    self._add(
                        mem, space, [self._entry(draw, f"{seed}-{step}-{n}") for n in range(draw.randrange(1, 8))]
                    )
                case "update" if known:
                    memory_id, content = draw.choice(known), f"changed {step}"
                    assert mem.update_memory(memory_id, space, content)
                    here[memory_id]["content"] = content
                case "metadata" if known:
                    memory_id, metadata = draw.choice(known), {"z": step, "a": {"y": [1.0, 1]}}
                    assert mem.update_memory(memory_id, space, metadata=metadata)
                    here[memory_id]["metadata"] = metadata
                case "both" if known:
                    memory_id, content = draw.choice(known), f"both {step}"
                    assert mem.update_memory(memory_id, space, content, {"both": step})
                    here[memory_id] |= {"content": content, "metadata": {"both": step}}
                case "delete" if known:
                    memory_id = draw.choice(known)
                    assert mem.delete_memory(memory_id, space)
                    del here[memory_id]
                case "again" if known:
                    memory_id = draw.choice(known)
                    assert mem.delete_memory(memory_id, space)
                    self._add(mem, space, [{**self._entry(draw, "again"), "memory_id": memory_id}])
                case "many" if len(known) > 3:
                    some = draw.sample(known, 3)
                    assert mem.delete_memories(some, space) == 3
                    for memory_id in some:
                        del here[memory_id]
        mem.delete_memories(list(self.spaces["emptied"]), "emptied")
        self.spaces["emptied"].clear()

    def _entry(self, draw: random.Random, label: str) -> dict[str, Any]:
        return {
            "content": f"memory {label} of {draw.choice(['tea', 'rain', 'music'])}",
            "metadata": {"label": label, "n": draw.randrange(10), "deep": {"list": [None, {"x": 10**30}]}},
            "timestamp": START + dt.timedelta(microseconds=draw.randrange(10**12)),
        }

    def _add(self, mem: Memory, space: str, entries: list[dict[str, Any]]) -> None:
        for memory_id, entry in zip(mem.add_entries(entries, space), entries, strict=True):
            self.spaces[space][memory_id] = {
                "memory_id": memory_id,
                "timestamp": entry["timestamp"],
                "content": entry["content"],
                "metadata": entry["metadata"],
            }

    def assert_equal(self, mem: Memory) -> None:
        """Every memory of every namespace to the last field and the last key, with the vector of its content."""
        mem.flush()
        for space, memories in self.spaces.items():
            found = mem.search(space, limit=10_000)
            assert {m["memory_id"]: dict(m) for m in found} == memories
            assert len(found) == len(memories) == mem.count(space)
            for memory in found:
                assert json.dumps(memory["metadata"]) == json.dumps(memories[memory["memory_id"]]["metadata"])
            expected = sorted((m["timestamp"] for m in memories.values()), reverse=True)
            assert [m["timestamp"] for m in found] == expected
            for memory in found[:5]:
                scored = mem.search(space, vector=words_vector(memory["content"]), limit=1)
                assert scored[0]["similarity_score"] == pytest.approx(1)
        assert mem.namespaces() == sorted(space for space, memories in self.spaces.items() if memories)
        stats = mem.stats()
        assert stats.dead_letters == 0
        assert stats.watermark == stats.durable_lsn == stats.log_events == mem.last_lsn
        assert mem.health().ok


@pytest.fixture
def model() -> Model:
    return Model()


def drop_projection(store_name: str) -> None:
    pxt.drop_dir(tables_path(store_name), force=True)


@pytest.mark.parametrize(
    ("layout", "direct_sql"),
    [(Layout.PER_NAMESPACE, True), (Layout.SHARED, True), (Layout.PER_NAMESPACE, False)],
    ids=["per namespace", "shared", "public API"],
)
def test_a_deleted_projection_is_rebuilt(
    open_memory: OpenMemory, store_name: str, model: Model, layout: Layout, direct_sql: bool
) -> None:
    options: dict[str, Any] = {"embedding_config": WORDS, "layout": layout, "direct_sql": direct_sql}
    steps = 100 if direct_sql else 30
    with open_memory(**options) as mem:
        model.live(mem, 1, steps)
        model.assert_equal(mem)
    with open_memory(**options) as mem:
        model.assert_equal(mem)
    drop_projection(store_name)
    with open_memory(**options) as mem:
        model.assert_equal(mem)
        model.live(mem, 2, steps // 4)
        model.assert_equal(mem)
    with open_memory(**options, rebuild=True) as mem:
        model.assert_equal(mem)


def test_parts_of_the_projection_are_deleted(open_memory: OpenMemory, store_name: str, model: Model) -> None:
    with open_memory(embedding_config=WORDS, layout=Layout.SHARED) as mem:
        model.live(mem, 3, 40)
    for table in ("state", "registry", "dead_letters"):
        pxt.drop_table(f"{tables_path(store_name)}/{table}", force=True)
        with open_memory(embedding_config=WORDS, layout=Layout.SHARED) as mem:
            model.assert_equal(mem)


def test_a_rebuild_embeds_nothing_anew(open_memory: OpenMemory) -> None:
    with open_memory(embedding_config=WORDS) as mem:
        ids = mem.add_entries([{"content": f"text {n}"} for n in range(40)])
        mem.update_memory(ids[0], content="text 7")
        before = mem.search(query="text 7", limit=40)
    for vector_cache in (True, False):
        embedded.clear()
        with open_memory(embedding_config=WORDS, rebuild=True, vector_cache=vector_cache) as mem:
            assert mem.stats().watermark == 41
            made = sorted(text for text in embedded if text.startswith("text"))
            assert made == ([] if vector_cache else sorted(f"text {n}" for n in range(1, 40)))
            assert mem.search(query="text 7", limit=40) == before


def test_the_rest_of_a_backlog_is_applied_after_a_reopen(open_memory: OpenMemory) -> None:
    """What was durable and not yet visible when the store was closed without waiting."""
    with open_memory(embedding_config=WORDS) as mem:
        mem.add_entry("visible")  # else the next open rebuilds the projection, and waits until that is done
    mem = open_memory(embedding_config=WORDS, wait_timeout_seconds=0, linger_seconds=5.0)
    ids = mem.add_entries([{"content": f"late {n}", "memory_id": f"late {n}"} for n in range(50)])
    mem.close()
    mem = open_memory(embedding_config=WORDS, linger_seconds=30.0)  # which ends when somebody waits
    with pytest.raises(MemoryExistsError):
        mem.add_entry("again", memory_id="late 7")
    assert mem.update_memory("late 8", content="changed")
    assert mem.delete_memory("late 9")
    assert mem.count() == len(ids)


BACKLOG = """
import os, signal, sys, threading
from tests.harness.engine_tools import open_memory, vector
from pixelmemory.faults import set_fault_hook

memory = open_memory(*sys.argv[1:])
memory.add_entry("visible", memory_id="visible", embedding=vector(0))
memory.flush()
set_fault_hook(lambda point: threading.Event().wait() if point == "projector.apply.before" else None)
memory.add_entries([{"content": "late", "memory_id": f"late {n}", "embedding": vector(n)} for n in range(5)])
memory.delete_memory("visible")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("first", ["add", "update", "delete", "add of a deleted one"])
def test_ids_of_a_backlog_are_known_to_the_first_call(first: str, tmp_path: Path, store_name: str) -> None:
    """A life was killed before it projected what it had acknowledged; nothing has waited for that in the next one."""
    assert run_script(BACKLOG, tmp_path, store_name).returncode == -signal.SIGKILL
    with given_memory(tmp_path, store_name, linger_seconds=30.0) as mem:  # which ends when somebody waits
        match first:
            case "add":
                with pytest.raises(MemoryExistsError):
                    mem.add_entry("again", memory_id="late 3", embedding=vector(1))
            case "update":
                assert mem.update_memory("late 3", metadata={"changed": True})
            case "delete":
                assert mem.delete_memory("late 3")
            case _:
                assert mem.add_entry("again", memory_id="visible", embedding=vector(1)) == "visible"
        assert mem.count() == {"delete": 4, "add of a deleted one": 6}.get(first, 5)


# ------------------------------------------------------------------------------------------------ foreign and ahead


def test_a_foreign_projection_is_rebuilt(open_memory: OpenMemory, tmp_path: Path, model: Model) -> None:
    """Two stores of one name in different homes share a place in Pixeltable; each open makes it its own."""
    other = Model()
    homes = (tmp_path / "one", tmp_path / "two")
    for home, each, seed in zip(homes, (model, other), (5, 6), strict=True):
        with open_memory(embedding_config=WORDS, layout=Layout.SHARED, home=home) as mem:
            each.live(mem, seed, 50)
            each.assert_equal(mem)
    for home, each in zip(homes, (model, other), strict=True):
        with open_memory(embedding_config=WORDS, layout=Layout.SHARED, home=home) as mem:
            each.assert_equal(mem)


def test_a_checkpoint_ahead_of_the_log_is_refused(
    open_memory: OpenMemory, tmp_path: Path, store_name: str, model: Model
) -> None:
    with open_memory(embedding_config=WORDS) as mem:
        model.live(mem, 7, 40)
        old_lsn = mem.last_lsn
    backup = tmp_path / "backup"
    shutil.copytree(tmp_path / store_name, backup)
    with open_memory(embedding_config=WORDS) as mem:
        mem.add_entries([{"content": f"later {n}"} for n in range(10)])
        new_lsn = mem.last_lsn
    shutil.rmtree(tmp_path / store_name)
    shutil.copytree(backup, tmp_path / store_name)
    for _ in range(2):
        with pytest.raises(CheckpointAheadError) as raised:
            open_memory(embedding_config=WORDS)
        assert (raised.value.checkpoint_lsn, raised.value.durable_lsn) == (new_lsn, old_lsn)
        assert "rebuild=True" in str(raised.value)
    with open_memory(embedding_config=WORDS, rebuild=True) as mem:
        model.assert_equal(mem)
        mem.add_entry("goes on", "default_namespace")
    with open_memory(embedding_config=WORDS) as mem:
        assert mem.last_lsn == old_lsn + 1


# ---------------------------------------------------------------------------------------------- another Pixeltable

SCRIPT = """
import json, sys
from pixelmemory import Memory, Options
name, home = sys.argv[1:]
with Memory(name, None, {"dimensions": 3}, options=Options(home=home, progress=False)) as mem:
    found = {space: mem.search(space, limit=1000) for space in mem.namespaces()}
    scored = mem.search("b", vector=[0.0, 1.0, 0.0], limit=1)
    mem.add_entry("written elsewhere", "b", memory_id="elsewhere", embedding=[0.0, 0.0, 1.0])
    print(json.dumps([found, scored, mem.health().ok], default=str))
"""


def test_another_pixeltable_is_filled_from_the_log(open_memory: OpenMemory, store_name: str, tmp_path: Path) -> None:
    with open_memory(embedding_config={"dimensions": 3}) as mem:
        for space in ("a", "b"):
            entries = [{"content": f"{n}", "metadata": {"n": n}, "embedding": axis} for n, axis in enumerate(np.eye(3))]
            ids = mem.add_entries(entries, space)
            mem.update_memory(ids[0], space, metadata={"n": "zero"})
            mem.delete_memory(ids[2], space)
        expected = {space: mem.search(space, limit=1000) for space in ("a", "b")}
        best = mem.search("b", vector=[0, 1, 0], limit=1)
    with pixeltable_home() as elsewhere:
        done = run_script(SCRIPT, store_name, tmp_path, timeout_seconds=400, PIXELTABLE_HOME=str(elsewhere))
    found, scored, ok = answer_of(done)
    assert found == json.loads(json.dumps(expected, default=str))
    assert scored == json.loads(json.dumps(best, default=str))
    assert ok
    # the first one catches up when the store comes back to it
    with open_memory(embedding_config={"dimensions": 3}) as mem:
        assert mem.search("a", limit=1000) == expected["a"]
        assert [m["content"] for m in mem.search("b", limit=1000)] == ["written elsewhere", "1", "0"]
        assert mem.search("b", vector=[0, 0, 1], limit=1)[0]["memory_id"] == "elsewhere"
