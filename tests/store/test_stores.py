"""The stores of a home: listed, destroyed, also after kills at every step of it, and temporary ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pixeltable as pxt
import pytest

from pixelmemory import (
    AsyncMemory,
    InvalidArgumentError,
    InvalidTypeError,
    ManifestError,
    Memory,
    Options,
    StoreError,
    StoreLockedError,
)
from pixelmemory.faults import DESTROY_FAULT_POINTS
from tests.harness.engine_tools import open_memory, options_at, run_script, tables_of, vector, with_pixeltable


def folders() -> set[str]:
    """The folders of stores in Pixeltable."""
    try:
        return set(with_pixeltable(lambda: pxt.list_dirs("pixelmemory", recursive=False)))
    except pxt.Error:
        return set()


def make(home: Path, name: str) -> str:
    """A closed store with a memory, a table of its own and a view on that; returns its folder in Pixeltable."""
    with open_memory(home, name, segment_bytes_max=4096) as memory:
        for number in range(30):
            memory.add_entry("x" * 500, "ann", embedding=vector(number))
        table = memory.get_namespace_table("ann")
        path = tables_of(memory).path
        with_pixeltable(lambda: pxt.create_view(f"{path}/mine", table))
        return path


# ------------------------------------------------------------------------------------------------------------- lists


def test_stores_are_listed(tmp_path: Path, store_name: str) -> None:
    home = tmp_path / "home"
    options = options_at(home)
    assert Memory.stores(options=options) == []
    make(home, f"{store_name}_b")
    with open_memory(home, f"{store_name}_a"):
        (home / "no store").mkdir()
        (home / "no store" / "log").mkdir()
        (home / "a file").touch()
        found = Memory.stores(options=options)
        sizes = [
            sum(path.lstat().st_size for path in (home / f"{store_name}_{end}").rglob("*") if path.is_file())
            for end in "ab"
        ]
    assert found == [
        {"name": f"{store_name}_{end}", "path": str(home / f"{store_name}_{end}"), "bytes": size}
        for end, size in zip("ab", sizes, strict=True)
    ]
    assert json.loads(json.dumps(found)) == found


def test_the_home_is_the_one_of_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELMEMORY_HOME", str(tmp_path / "home"))
    assert Memory.stores() == []
    (tmp_path / "home").touch()
    with pytest.raises(StoreError, match="stores in PIXELMEMORY_HOME cannot be listed"):
        Memory.stores()
    with pytest.raises(InvalidTypeError):
        Memory.stores(options="home")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- is destroyed


def test_a_destroyed_store_leaves_nothing(tmp_path: Path, store_name: str) -> None:
    path, other = make(tmp_path, store_name), make(tmp_path, f"{store_name}_other")
    assert {path, other} <= folders()
    Memory.destroy(store_name, confirm=store_name, options=options_at(tmp_path))
    assert os.listdir(tmp_path) == [f"{store_name}_other"]
    assert path not in folders()
    assert other in folders()
    with open_memory(tmp_path, store_name) as memory:
        assert memory.count() == 0, "another store of the name"
    with open_memory(tmp_path, f"{store_name}_other") as memory:
        assert memory.count() == 30


@pytest.mark.anyio
async def test_it_is_destroyed_from_an_event_loop(tmp_path: Path, store_name: str) -> None:
    options = options_at(tmp_path)
    async with AsyncMemory(store_name, None, None, options=options) as memory:
        await memory.add_entry("x")
        with pytest.raises(StoreLockedError):
            await AsyncMemory.destroy(store_name, confirm=store_name, options=options)
        assert await memory.count() == 1
    assert [store["name"] for store in await AsyncMemory.stores(options=options)] == [store_name]
    await AsyncMemory.destroy(store_name, confirm=store_name, options=options)
    assert await AsyncMemory.stores(options=options) == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"confirm": "other"},
            InvalidArgumentError,
            "confirm must be the store's name once more, '{name}', not 'other'",
        ),
        ({"confirm": True}, InvalidTypeError, "confirm must be the store's name once more, not bool"),
        ({"name": "../x", "confirm": "../x"}, InvalidArgumentError, "name must be 1 to 64"),
        (
            {"name": "{name}s", "confirm": "{name}s"},
            StoreError,
            "there is no store '{name}s' in .*: did you mean '{name}'",
        ),
        ({"name": "zzz", "confirm": "zzz"}, StoreError, "there is no store 'zzz' in .*; stores there: {name}"),
        ({"name": "mine", "confirm": "mine"}, StoreError, "is not a store: it has no MANIFEST; nothing was removed"),
    ],
    ids=["confirm", "type", "name", "near", "far", "foreign"],
)
def test_what_is_not_destroyed(
    tmp_path: Path, store_name: str, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    (tmp_path / "mine" / "log").mkdir(parents=True)
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "mine" / "LOCK").touch()
    path = make(tmp_path, store_name)
    given: dict[str, Any] = {"name": store_name, "confirm": store_name, **change}
    named = {key: each.format(name=store_name) if isinstance(each, str) else each for key, each in given.items()}
    with pytest.raises(error, match=message.format(name=store_name)):
        Memory.destroy(**named, options=options_at(tmp_path))
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    assert path in folders()
    with open_memory(tmp_path, store_name) as memory:
        assert memory.count() == 30


def test_a_store_whose_manifest_is_damaged_is_left(tmp_path: Path, store_name: str) -> None:
    path = make(tmp_path, store_name)
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / store_name / "MANIFEST").write_text("?")
    with pytest.raises(ManifestError):
        Memory.destroy(store_name, confirm=store_name, options=options_at(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
    assert path in folders()


def test_a_copy_is_destroyed_without_the_original(tmp_path: Path, store_name: str) -> None:
    """Both have one id until the copy is opened."""
    path = make(tmp_path, store_name)
    shutil.copytree(tmp_path / store_name, tmp_path / "copies" / store_name)
    Memory.destroy(store_name, confirm=store_name, options=options_at(tmp_path / "copies"))
    assert os.listdir(tmp_path / "copies") == []
    assert path in folders()


def test_a_linked_store_is_destroyed_where_it_lies(tmp_path: Path, store_name: str) -> None:
    make(tmp_path, store_name)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / store_name).symlink_to(tmp_path / store_name)
    Memory.destroy(store_name, confirm=store_name, options=options_at(tmp_path / "home"))
    assert os.listdir(tmp_path) == ["home"]
    assert os.listdir(tmp_path / "home") == []


DESTROY = """
    import sys
    from pixelmemory import Memory, Options
    home, name = sys.argv[1:]
    Memory.destroy(name, confirm=name, options=Options(home=home))
"""

#: a hit of a point, and whether the store still opens afterwards
KILLS = {
    "destroy.mark.before_write": False,
    "destroy.mark.after_write": False,
    "destroy.mark.after_sync": False,
    "destroy.after_mark": False,
    "destroy.after_tables": False,
    "destroy.after_file": False,
    "destroy.after_last_file:1": False,  # MANIFEST
    "destroy.after_last_file:2": True,  # DESTROYED: only the lock is left
    "destroy.after_last_file:3": True,
}


def test_there_is_a_kill_at_each_point() -> None:
    assert tuple(dict.fromkeys(kill.partition(":")[0] for kill in KILLS)) == DESTROY_FAULT_POINTS


@pytest.mark.parametrize(("kill", "opens"), KILLS.items())
def test_a_destroy_that_is_killed_is_finished_by_the_next(
    tmp_path: Path, store_name: str, kill: str, opens: bool
) -> None:
    path = make(tmp_path, store_name)
    done = run_script(DESTROY, tmp_path, store_name, PIXELMEMORY_FAULT_POINT=kill)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if not opens:
        assert [store["name"] for store in Memory.stores(options=options_at(tmp_path))] == [store_name]
        with pytest.raises(
            StoreError, match=rf"Finish it with Memory.destroy\('{store_name}', confirm='{store_name}'\)"
        ):
            open_memory(tmp_path, store_name)
    Memory.destroy(store_name, confirm=store_name, options=options_at(tmp_path))
    assert os.listdir(tmp_path) == []
    assert path not in folders()
    with pytest.raises(StoreError, match="there is no store"):
        Memory.destroy(store_name, confirm=store_name, options=options_at(tmp_path))


# ---------------------------------------------------------------------------------------------------------- temporary


@pytest.fixture
def no_other_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files; no other home is to be touched."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("PIXELMEMORY_HOME", str(tmp_path / "home"))
    return tmp_path / "tmp"


def test_a_temporary_store_leaves_nothing(no_other_home: Path) -> None:
    before = folders()
    with Memory.temporary({"n": int}, {"dimensions": 8}) as one, Memory.temporary() as other:
        one.add_entry("x", metadata={"n": 1}, embedding=vector(1))
        other.add_entry("y")
        assert [memory["content"] for memory in one.search(vector=vector(1))] == ["x"]
        assert [memory["content"] for memory in other.search()] == ["y"]
        assert one.flush() == other.flush() == 1
        assert len(folders() - before) == 2
        [mode, _] = [path.stat().st_mode & 0o777 for path in no_other_home.iterdir()]
        assert mode == 0o700
    assert folders() == before
    assert list(no_other_home.iterdir()) == []
    assert not (no_other_home.parent / "home").exists()


@pytest.mark.anyio
async def test_a_temporary_store_in_an_event_loop(no_other_home: Path) -> None:
    handle = AsyncMemory.temporary()
    assert os.listdir(no_other_home) == [], "it is not open yet"
    async with handle as memory:
        await memory.add_entry("x")
        assert await memory.count() == 1
    assert os.listdir(no_other_home) == []


def test_one_that_is_not_closed_in_order_leaves_nothing_either(no_other_home: Path) -> None:
    before = folders()
    memory = Memory.temporary()
    memory.add_entry("x")
    memory.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    engine = memory._memory._engine
    assert engine is not None
    engine._store.close()  # type: ignore[union-attr]  # waits for the end of it
    assert folders() == before
    assert list(no_other_home.iterdir()) == []


def test_one_that_cannot_be_opened_leaves_nothing(no_other_home: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        Memory.temporary(embedding_config={"dimensions": 5000})
    with pytest.raises(InvalidArgumentError, match="options has a home, and a temporary store has one of its own"):
        Memory.temporary(options=Options(home=no_other_home))
    assert list(no_other_home.iterdir()) == []


def test_its_close_waits_for_nothing(no_other_home: Path) -> None:
    with Memory.temporary(options=Options(linger_seconds=60.0, linger_seconds_max=60.0)) as memory:
        memory.add_entry("x")
        stats = memory.stats()
        assert stats.watermark < stats.durable_lsn, "the batch is left to gather for a minute"
    assert list(no_other_home.iterdir()) == []
