"""The paths that users give: whatever they look like they work, or the error names the variable, the path, the reason.

And they mean the same folder for as long as a store is open, wherever the process goes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pixelmemory import Memory, ModelLoadError, Options, StoreError
from pixelmemory.cli import main
from pixelmemory.embedding import VectorCache
from pixelmemory.embedding.source import find_model
from tests.harness.engine_tools import open_memory, run_script

LONG = "x" * 200
ODD_NAMES = {
    "spaces": "  two  spaces  ",
    "quotes": "'single' \"double\" `back`",
    "percent": "100%s %20 %(x)s",
    "hash and question mark": "a#b?c=d&mode=ro",
    "newline": "two\nlines",
    "backslash": "back\\slash\\n",
    "braces": "{0} {home} $HOME",
    "non-ASCII": "ünï-日本語-🦊",
    "no UTF-8": os.fsdecode(b"latin-\xe9\xff"),
    "200 characters": LONG,
    "leading dash": "--help",
    "a tilde inside": "a~b",
}


def _keeps_memories(home: Path | str, name: str) -> None:
    """A store there takes memories, and has them after it was opened again."""
    with open_memory(home, name) as memory:
        memory_id = memory.add_entry("hello", embedding=[1.0] + [0.0] * 7)
    with open_memory(home, name) as memory:
        found = memory.get_memory(memory_id)
        assert found is not None
        assert found["content"] == "hello"


# -- paths that work


@pytest.mark.parametrize("kind", ODD_NAMES)
def test_odd_names_work(tmp_path: Path, store_name: str, kind: str) -> None:
    home = tmp_path / ODD_NAMES[kind]
    _keeps_memories(home, store_name)
    assert (home / store_name / "MANIFEST").is_file()
    assert list((home / store_name / "log").glob("*.log"))
    assert [path.name for path in tmp_path.iterdir()] == [home.name]


@pytest.mark.parametrize("kind", ODD_NAMES)
def test_the_vector_cache_works_in_folders_of_odd_names(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / ODD_NAMES[kind] / "vectors"
    vectors = np.ones((1, 3), np.float32)
    cache = VectorCache(folder, "model", 3)
    cache.put_many(["text"], vectors)
    cache.close()
    cache = VectorCache(folder, "model", 3)
    assert cache.get_many(["text"])[0].tolist() == [True]
    cache.close()
    assert [path.name for path in folder.iterdir() if path.suffix == ".vectors"]


def test_missing_parents_are_made_for_the_owner_alone(tmp_path: Path, store_name: str) -> None:
    _keeps_memories(tmp_path / "a" / "b" / "c", store_name)
    for folder in ("a", "a/b", "a/b/c", f"a/b/c/{store_name}"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700


def test_openers_that_make_the_same_parents_at_once_all_succeed(tmp_path: Path) -> None:
    from pixelmemory.log.file.files import Files, ensure_folder

    class Late(Files):
        """Another process makes each folder just before us."""

        def make_folder(self, path: Path) -> None:
            path.mkdir()
            super().make_folder(path)

    ensure_folder(Late(), tmp_path / "a" / "b")
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda _: ensure_folder(Files(), tmp_path / "c" / "d" / "e"), range(64)))
    assert (tmp_path / "c" / "d" / "e").is_dir()


def test_home_is_any_kind_of_path(tmp_path: Path) -> None:
    class Raw:
        def __fspath__(self) -> bytes:
            return os.fsencode(tmp_path / "raw")

    assert Options(home=str(tmp_path)).home_path() == tmp_path
    assert Options(home=tmp_path).home_path() == tmp_path
    assert Options(home=Raw()).home_path() == tmp_path / "raw"  # type: ignore[arg-type]


def test_a_tilde_is_the_users_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Options(home="~").home_path() == tmp_path
    assert Options(home="~/notes").home_path() == tmp_path / "notes"
    assert Options(home=tmp_path / "~").home_path() == tmp_path / "~"
    monkeypatch.chdir(tmp_path)
    assert Options(home="./~x").home_path() == tmp_path / "~x"
    monkeypatch.setenv("PIXELMEMORY_HOME", "~/env")
    assert Options().home_path() == tmp_path / "env"


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIXELMEMORY_HOME", raising=False)
    default = Options().home_path()
    assert default.is_absolute()
    monkeypatch.setenv("PIXELMEMORY_HOME", "")
    assert Options().home_path() == default


def test_two_dots_mean_what_the_system_means_by_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work" / "build").mkdir(parents=True)
    (tmp_path / "elsewhere" / "target").mkdir(parents=True)
    (tmp_path / "work" / "link").symlink_to(tmp_path / "elsewhere" / "target")
    monkeypatch.chdir(tmp_path / "work" / "build")
    home = Options(home="../mem").home_path()
    assert home == tmp_path / "work" / "mem"
    through_link = Options(home="../link/../mem").home_path()
    assert through_link == tmp_path / "elsewhere" / "mem"
    (tmp_path / "work" / "build").rmdir()
    home.mkdir()  # ".." of a folder that is gone would not be found


# -- paths that do not work


def _too_long(folder: Path) -> Path:
    return folder / ("y" * 300)


def _file_in_the_way(folder: Path) -> Path:
    (folder / "file").write_text("not a folder")
    return folder / "file"


def _below_a_file(folder: Path) -> Path:
    return _file_in_the_way(folder) / "mem"


def _path_max(folder: Path) -> Path:
    return folder.joinpath(*["z" * 200] * 25)


def _loop(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


REFUSED: dict[str, tuple[Callable[[Path], str | Path], str]] = {
    "empty": (lambda _: "", "empty"),
    "NUL": (lambda folder: f"{folder}/a\0b", "NUL"),
    "lone surrogate": (lambda folder: f"{folder}/\ud800", "surrogates not allowed"),
    "unknown user": (lambda _: "~nobody-of-this-name/mem", "no user 'nobody-of-this-name'"),
    "a name too long": (_too_long, "File name too long"),
    "a path too long": (_path_max, "File name too long"),
    "a file": (_file_in_the_way, "File exists"),
    "below a file": (_below_a_file, "File exists"),
    "a link to itself": (_loop, "File exists"),
}


@pytest.mark.parametrize("variable", ["Options.home", "PIXELMEMORY_HOME"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_a_home_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, variable: str
) -> None:
    make, reason = REFUSED[kind]
    home = make(tmp_path)
    if variable == "Options.home":
        options = Options(home=home)
    elif kind in ("empty", "NUL", "lone surrogate"):
        pytest.skip("no environment variable can hold it, or it means that there is none")
    else:
        monkeypatch.setenv("PIXELMEMORY_HOME", str(home))
        options = Options()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError) as caught:
        Memory("notes", embedding_config=None, options=options)
    assert variable in str(caught.value)
    assert reason in str(caught.value)
    assert str(home)[:40].split("\0")[0].split("\ud800")[0] in str(caught.value)
    assert str(caught.value).isprintable()
    if kind != "a path too long":
        assert sorted(tmp_path.rglob("*")) == before


def test_a_home_below_a_folder_that_is_read_only() -> None:
    """As an account that is not root, which may write everywhere."""
    script = """
import importlib.metadata  # imported late otherwise, from a folder that the other account may not enter
import os, sys
from pixelmemory import Options, StoreError
from pixelmemory.store.opening import open_store
if os.getuid() == 0:
    os.setuid(65534)
try:
    open_store("s", None, None, Options(home=sys.argv[1]), on_commit=lambda _: None, on_watermark=lambda _: None)
except StoreError as error:
    assert "Options.home" in str(error) and sys.argv[1] in str(error) and "Permission denied" in str(error), error
    print("{}")
"""
    # next to the run's Pixeltable: the other account cannot get to a test's own folder
    parent = Path(tempfile.mkdtemp(prefix="read-only-", dir=Path(os.environ["PIXELTABLE_HOME"]).parent))
    parent.chmod(0o555)
    done = run_script(script, parent / "mem")
    assert done.stdout == "{}\n", done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can take another user id")
@pytest.mark.parametrize("home", ["~/mem", None])
def test_an_account_without_a_home_folder(home: str | None) -> None:
    script = """
import os, sys
from pixelmemory import Options, StoreError
import platformdirs
os.environ.pop("HOME", None); os.environ.pop("PIXELMEMORY_HOME", None); os.environ.pop("XDG_DATA_HOME", None)
os.setuid(54321)
try:
    Options(home=sys.argv[1] or None).home_path()
except StoreError as error:
    print(error)
"""
    done = run_script(script, home or "")
    assert done.returncode == 0, done.stderr
    assert ("Options.home cannot be used" if home else "set Options.home or PIXELMEMORY_HOME") in done.stdout
    assert "HOME" in done.stdout


def test_a_relative_home_in_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(StoreError, match=r"Options\.home cannot be used: 'mem': .*No such file or directory"):
        Memory("notes", embedding_config=None, options=Options(home="mem"))
    monkeypatch.chdir(tmp_path)


# -- a path means one folder


@pytest.mark.parametrize("variable", ["Options.home", "PIXELMEMORY_HOME"])
def test_a_relative_home_stays_where_it_was_opened(
    tmp_path: Path, store_name: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    (tmp_path / "opened").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "opened")
    options = Options(home="mem", segment_bytes_max=4096, progress=False)
    if variable == "PIXELMEMORY_HOME":
        monkeypatch.setenv("PIXELMEMORY_HOME", "./mem")
        options = Options(segment_bytes_max=4096, progress=False)
    with Memory(store_name, embedding_config=None, options=options) as memory:
        monkeypatch.chdir(tmp_path / "other")
        ids = [memory.add_entry("x" * 500, memory_id=f"m{n}") for n in range(40)]
        memory.update_memory(ids[0], content="y")
        assert memory.compact() > 0
        assert memory.erase_memory(ids[1])
        ids += [memory.add_entry("x" * 500) for _ in range(20)]
        assert memory.count() == 59
        assert len(list((tmp_path / "opened" / "mem" / store_name / "log").glob("*.log"))) > 3
        assert list((tmp_path / "other").iterdir()) == []
    monkeypatch.chdir(tmp_path / "opened")
    with Memory(store_name, embedding_config=None, options=options) as memory:
        assert memory.count() == 59


def test_a_relative_model_folder_is_found_where_the_store_is_opened(
    minilm_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(minilm_path).parent)
    source = find_model(f"./{Path(minilm_path).name}")
    assert source.folder == Path(minilm_path)
    assert source.target == minilm_path
    assert find_model(f"../{Path(minilm_path).parent.name}/{Path(minilm_path).name}").target == minilm_path


@pytest.mark.parametrize("model_id", ["~nobody-of-this-name/model", "/" + "x" * 300, "./" + "x" * 5000, "x" * 5000])
def test_a_model_folder_that_cannot_be_a_path(model_id: str) -> None:
    with pytest.raises(ModelLoadError):
        find_model(model_id)


@pytest.mark.parametrize("store", ["~nobody-of-this-name/mem", "./" + "x" * 300, "gone"])
def test_the_program_refuses_what_cannot_be_a_path(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["verify", store, "--home", str(tmp_path)]) == 2
    assert store[2:12] in capsys.readouterr().err


def test_a_linked_home_works_and_a_link_that_is_pointed_elsewhere_is_noticed(tmp_path: Path, store_name: str) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "first")
    _keeps_memories(tmp_path / "home", store_name)
    shutil.copytree(tmp_path / "first" / store_name, tmp_path / "second" / store_name)
    untouched = {path: path.read_bytes() for path in (tmp_path / "second").rglob("*") if path.is_file()}
    with open_memory(tmp_path / "home", store_name, segment_bytes_max=4096) as memory:
        memory.delete_memory(memory.add_entry("leaves something to compact", embedding=[1.0] + [0.0] * 7))
        (tmp_path / "home").unlink()
        (tmp_path / "home").symlink_to(tmp_path / "second")
        with pytest.raises(StoreError, match="was moved, replaced or unmounted"):
            memory.compact()
        (tmp_path / "home").unlink()
        (tmp_path / "home").symlink_to(tmp_path / "first")
        memory.add_entry("goes on", embedding=[1.0] + [0.0] * 7)
    assert {path: path.read_bytes() for path in (tmp_path / "second").rglob("*") if path.is_file()} == untouched
