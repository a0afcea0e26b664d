"""What somebody hostile could try: texts that mean something elsewhere, sizes, files, sockets, models, the terminal."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hypothesis
import pytest
from hypothesis import strategies as st

import pixelmemory
from pixelmemory import InvalidArgumentError, InvalidTypeError, Layout, Memory, Options
from pixelmemory.cli import main
from pixelmemory.embedding import EmbeddingConfig, parse_embedding_config
from pixelmemory.memory.filters import matches, parse_filter
from pixelmemory.memory.metadata import decode_metadata, encode_metadata
from pixelmemory.memory.schema import parse_schema
from pixelmemory.projection.sql.filters import compile_filter
from tests.harness.engine_tools import answer_of, run_script, start_script, tables_path

if TYPE_CHECKING:  # at run time there are several modules of this name
    from tests.conftest import OpenMemory

needs_proc = pytest.mark.skipif(not Path("/proc/self/net/unix").exists(), reason="reads /proc, as Linux has it")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")

NOBODY = 65534

#: texts that mean something to SQL, to its drivers, to JSON paths, patterns, file systems, shells or terminals
HOSTILE = [
    "'; DROP TABLE state; --", "' OR '1'='1", '"', "\\", "a\\", "\\'; --", "$$", "$tag$ x $tag$", "%s", "%(f0)s", "%%",
    ":name", "{}", "{0.__class__}", "${HOME}", "`id`", "$(id)", "$.a", "$.*", "a.b", ".", "..", "@", "?", "**",
    "$[*] ? (@ == 1)", '"] || true', "_", "%", "a%", ".*", "[a-z]+", "(?i)x", "*", "../../etc/passwd", "/etc/passwd",
    ".hidden", "~", "-rf", "a/b", "C:\\x", "a\nb", "\r\n", "\t", "\x01", "\x1b[31mred", "\x1b]0;title\x07", "\x7f",
    "\x9b1m", "\u202egnp.exe", "\u2028", "\ufeff", "null", "true", "state", "registry", "ns_x", "memories",
    "__pxttype__", "\\u0000", "\\x00", "&#0;", "\U000e0041", "\U0010ffff", "x" * 255, "é" * 255,
    # pairs that some folding takes for the same
    "Key", "key", "KEY", "\u212aey", "k\u0435y", "key ", " key", "key\u200d", "key\u200b", "k\u0332ey", "\u00e9",
    "e\u0301", "\ufb01", "fi", "\u00df", "ss", "I", "i", "\u0131", "\u0130", "1", "\uff11", "a", "\u0430", "\u00c5",
    "\u212b", "A\u030a",
]  # fmt: skip
assert len(set(HOSTILE)) == len(HOSTILE)
#: of them, some that differ in case, in normal form, in what is not seen, in the alphabet
TWINS = ["Key", "key", "\u212aey", "key ", "key\u200d", "k\u0435y", "\u00e9", "e\u0301"]
assert set(TWINS) < set(HOSTILE)

CONFIGURATIONS = [(layout, direct) for layout in Layout for direct in (True, False)]
CONFIGURATION_NAMES = [f"{layout.value}-{'sql' if direct else 'public_api'}" for layout, direct in CONFIGURATIONS]


def written(*keys: str) -> str:
    """The path of ``keys`` as a filter has it."""
    text = ".".join(key.replace(".", "\\.") for key in keys)
    return f"\\{text}" if text.lstrip("\\").startswith("$") else text


# ------------------------------------------------------------------------------------------------- what stays a text


class Kept:
    """What a store must hold: contents and metadata by (namespace, memory id)."""

    def __init__(self) -> None:
        self.memories: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}

    def add(self, mem: Memory, namespace: str, memory_id: str, content: str, metadata: dict[str, Any]) -> None:
        assert mem.add_entry(content, namespace, memory_id=memory_id, metadata=metadata) == memory_id
        self.memories[namespace, memory_id] = content, metadata

    def assert_all(self, mem: Memory) -> None:
        assert set(mem.namespaces()) >= {namespace for namespace, _ in self.memories}
        for namespace in {namespace for namespace, _ in self.memories}:
            held = {at[1]: kept for at, kept in self.memories.items() if at[0] == namespace}
            found = mem.search(namespace, limit=len(held) + 1)
            assert {m["memory_id"]: (m["content"], m["metadata"]) for m in found} == held
            assert len(found) == mem.count(namespace) == len(held)
        assert mem.health().ok, mem.health()


def expect_found(mem: Memory, namespace: str, memory_ids: set[str], metadata_filter: dict[str, Any]) -> None:
    found = {memory["memory_id"] for memory in mem.search(namespace, metadata_filter=metadata_filter)}
    assert found == memory_ids, metadata_filter


@pytest.mark.parametrize(("layout", "direct"), CONFIGURATIONS, ids=CONFIGURATION_NAMES)
def test_a_text_that_means_something_elsewhere_is_a_text_here(
    open_memory: OpenMemory,
    tmp_path: Path,
    store_name: str,
    monkeypatch: pytest.MonkeyPatch,
    layout: Layout,
    direct: bool,
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    options: dict[str, Any] = {"layout": layout, "direct_sql": direct, "linger_seconds": 0.0}
    mem = open_memory(**options)
    kept = Kept()
    kept.add(mem, "canary", "canary", "stays", {"canary": ["stays"]})
    # a namespace of its own costs a table in one layout, and a transaction each without SQL
    step = 9 if direct else len(HOSTILE)
    for text in dict.fromkeys([*HOSTILE[::step], *TWINS]):
        kept.add(mem, text, text, text, {"text": text})
    entries = [{"content": text, "memory_id": text, "metadata": {text: {text: [text]}}} for text in HOSTILE]
    assert mem.add_entries(entries, "ids") == HOSTILE
    kept.memories |= {("ids", text): (text, {text: {text: [text]}}) for text in HOSTILE}
    numbered = {text: number for number, text in enumerate(HOSTILE)}
    kept.add(mem, "keys", "one", "", numbered)
    kept.assert_all(mem)
    for text in HOSTILE[:: 4 if direct else 12]:
        found = mem.get_memory(text, "ids")
        assert found is not None
        assert found["memory_id"] == found["content"] == text
        expect_found(mem, "keys", {"one"}, {written(text): {"$eq": numbered[text], "$lte": numbered[text]}})
        expect_found(mem, "keys", set(), {written(text): {"$gt": numbered[text]}})
        expect_found(mem, "keys", set(), {written(text, text): {"$exists": True}})
        if not text.endswith("\\"):
            same = {"$eq": text, "$contains": text, "$in": [text], "$gte": text, "$lte": text}
            expect_found(mem, "ids", {text}, {written(text, text): same})
        expect_found(mem, "canary", set(), {"canary": text})
    for text in HOSTILE[::9]:
        content, metadata = f"{text}{text}", {"updated": {text: [text]}}
        assert mem.update_memory(text, "ids", content=content, metadata=metadata)
        kept.memories["ids", text] = content, metadata
    for text in HOSTILE[1::9]:
        assert mem.delete_memory(text, "ids")
        assert mem.get_memory(text, "ids") is None
        del kept.memories["ids", text]
    assert mem.delete_memories(HOSTILE[2::9], "ids") == len(HOSTILE[2::9])
    for text in HOSTILE[2::9]:
        del kept.memories["ids", text]
    kept.assert_all(mem)
    has_own_tables = layout is Layout.PER_NAMESPACE or (layout is Layout.AUTO and not direct)
    assert_nothing_else(tmp_path, store_name, len(mem.namespaces()) if has_own_tables else 1)
    mem.close()
    mem = open_memory(rebuild=True, **options)
    kept.assert_all(mem)
    mem.close()
    assert_nothing_else(tmp_path, store_name, len({at for at, _ in kept.memories}) if has_own_tables else 1)


def assert_nothing_else(home: Path, store: str, memory_tables: int) -> None:
    """There is no file and no table but those of the store, and their names are plain."""
    paths = {str(path.relative_to(home)) for path in home.rglob("*")}
    own = re.compile(rf"folder|{store}(/LOCK|/MANIFEST|/log|/log/[0-9a-f_.-]+\.log)?")
    assert not [path for path in paths if not own.fullmatch(path)]
    import pixeltable as pxt
    import psycopg

    from pixelmemory.projection.pixeltable.startup import connection_string

    tables = {path.rpartition("/")[2] for path in pxt.list_tables(tables_path(store))}
    assert tables >= {"state", "registry", "dead_letters"}
    assert len(tables) == 3 + memory_tables
    assert all(re.fullmatch(r"state|registry|dead_letters|memories|ns_[a-z0-9_]{1,60}", table) for table in tables)
    with psycopg.connect(connection_string()) as connection:
        names = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
        assert not [name for (name,) in names if not re.fullmatch(r"[a-z0-9_]+", name)]


any_text = st.text(st.characters(), max_size=20)
odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.binary(max_size=3)
    | st.sampled_from([400, 5000]).map(lambda digits: 10**digits)
    | st.sampled_from([float("nan"), float("inf"), (1,), {1}, object(), uuid.UUID(int=1)]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(any_text | st.sampled_from([0, None, (1,), "$and", "$not", "$in", "$eq"]), inner, max_size=3)
    | inner.map(lambda value: {10**5000: value}),
    max_leaves=8,
)  # fmt: skip


@hypothesis.settings(max_examples=120, deadline=None, database=None, derandomize=True)
@hypothesis.given(odd)
def test_metadata_is_kept_exactly_or_refused(value: Any) -> None:
    try:
        text = encode_metadata(value, Options())
    except (InvalidArgumentError, InvalidTypeError) as error:
        shown = str(error)
    else:
        assert repr(decode_metadata(text)) == repr(value or {})
        return
    assert shown.isprintable()
    assert len(shown) < 1400


@hypothesis.settings(max_examples=120, deadline=None, database=None, derandomize=True)
@hypothesis.given(odd)
def test_a_filter_is_a_tree_or_refused(value: Any) -> None:
    tree, shown = None, ""
    try:
        tree = parse_filter(value, Options())
    except InvalidArgumentError as error:
        shown = str(error)
    assert not shown or shown.isprintable()
    if not shown and tree is not None:
        sql, parameters = compile_filter(tree, metadata="m", typed={})
        assert set(re.findall(r"%\((\w+)\)s", sql)) == set(parameters), "and nothing of it stands in the SQL"
        assert re.fullmatch(r"[A-Za-z0-9_ ()%:>\[\]<=@'*,.{}|&-]*", sql)
        matches(tree, {})


def test_a_stores_name_becomes_a_path_only_where_it_is_plain(tmp_path: Path) -> None:
    home = tmp_path / "home"
    refused = 0
    for name in (*HOSTILE, "a\0", "\ud800", "", "x" * 65, "a b", "é", "CON\n"):
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
            continue
        with pytest.raises(InvalidArgumentError) as error:
            Memory(name, embedding_config=None, options=Options(home=home))
        assert error.value.field == "name"
        assert str(error.value).isprintable()
        refused += 1
    assert refused > 60
    assert not home.exists()


def test_a_schemas_field_becomes_a_column_only_where_it_is_plain() -> None:
    refused = 0
    for name in (*HOSTILE, "a\0", "\ud800", "", "class", "a b", "_a", "a;b", 10**5000, None, 1.5):
        if isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) and name != "class":
            assert parse_schema({name: str}) is not None
            continue
        with pytest.raises((InvalidArgumentError, InvalidTypeError)) as error:
            parse_schema({name: str})
        assert str(error.value).isprintable()
        refused += 1
    assert refused > 60


def test_fields_with_names_that_mean_something_to_sql(open_memory: OpenMemory) -> None:
    names = "user order v_min v_max rowid xmin ctid oid tableoid null default desc table end key col_0 pos".split()
    mem = open_memory(schema=dict.fromkeys(names, str))
    for value in ("'; --", "%s"):
        mem.add_entry(value, memory_id=value, metadata=dict.fromkeys(names, value))
    for name in names:
        expect_found(mem, "default_namespace", {"%s"}, {name: "%s"})
        expect_found(mem, "default_namespace", {"'; --"}, {name: {"$gt": "%s"}})


@pytest.mark.parametrize("direct", [True, False])
def test_fields_keep_their_case_where_columns_do_not(open_memory: OpenMemory, direct: bool) -> None:
    mem = open_memory(schema={"userId": str, "Year": int}, direct_sql=direct)
    mem.add_entry("one", memory_id="one", metadata={"userId": "Ada", "Year": 1843, "userid": "other"})
    expect_found(mem, "default_namespace", {"one"}, {"userId": "Ada"})
    expect_found(mem, "default_namespace", {"one"}, {"Year": {"$gt": 1800}, "userid": "other"})
    expect_found(mem, "default_namespace", set(), {"userId": "other"})
    (row,) = mem.get_namespace_table("default_namespace").select().collect()
    assert (row["userid"], row["year"]) == ("Ada", 1843)


# --------------------------------------------------------------------------------------------------- sizes and depths


def nested(levels: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


class Identical(str):
    """A string that is equal to itself alone: a dict takes two of one text."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class Changing(dict[str, Any]):
    """A mapping whose items are not those that its keys told."""

    def items(self) -> Any:
        return [("a\0", 1)]


METADATA = {
    "lists": {"a": nested(10_000, lambda inner: [inner])},
    "objects": nested(10_000, lambda inner: {"a": inner}),
    "both": {"a": nested(10_000, lambda inner: [{"a": inner}])},
    "bytes": {"a": "x" * 2**20},
    "values": {"a": [0] * 2**20},
    "digits": {"a": 10**5000},
    "a key of digits": {10**5000: 1},
    "a key of digits below": {"a": [{-(10**5000): 1}]},
    "nan": {"a": [float("nan")]},
    "inf": {"a": {"b": -float("inf")}},
    "two keys of one text": {Identical("a"): 1, Identical("a"): 2},
    "changing": Changing(a=1),
    "keys": {None: 1},
    "tuple key": {("a",): 1},
}

FILTERS = {
    **{name: {"a": {"$eq": value}} for name, value in METADATA.items() if name not in ("keys", "tuple key")},
    "not": nested(10_000, lambda inner: {"$not": inner if isinstance(inner, dict) else {"a": 1}}),
    "and": nested(10_000, lambda inner: {"$and": [inner if isinstance(inner, dict) else {"a": 1}]}),
    "not below": {"a": nested(10_000, lambda inner: {"$not": inner if isinstance(inner, dict) else {"$eq": 1}})},
    "conditions": {"$or": [{"a": 1}] * 1001},
    "fields": {str(number): 1 for number in range(1001)},
    "path": {".".join(["a"] * 1001): 1},
    "paths": {"$or": [{".".join(["a"] * 100): 1}] * 11},
    "conditions of a path": {".".join(["a"] * 100): {"$and": [{"$gt": n} for n in range(11)]}},
    "in": {"a": {"$in": list(range(300_000))}},
    "in objects": {"a": {"$in": [{"a": 1}] * 300_000}},
    "exists": {"a": {"$exists": 10**5000}},
    "operand": {"a": {"$gt": 10**5000}},
    "key": {10**5000: 1},
    "changing filter": Changing(a=1),
}  # fmt: skip

OTHERS: dict[str, Callable[[Memory], Any]] = {
    "content": lambda mem: mem.add_entry("x" * 10_000_001),
    "memory id": lambda mem: mem.add_entry("x", memory_id="x" * 1025),
    "namespace": lambda mem: mem.add_entry("x", "x" * 256),
    "entries": lambda mem: mem.add_entries([{"content": "x" * 1000}] * 1100),
    "unknown keys": lambda mem: mem.add_entries([cast(Any, {"content": "x", 10**5000: 1, "\x1b": 1})]),
    "a bad id among many": lambda mem: mem.delete_memories([*(f"{n:0>1000}" for n in range(1100)), "\x1b\0"]),
    "limit": lambda mem: mem.search(limit=-(10**5000)),
    "timeout": lambda mem: mem.search(timeout=-(10**5000)),
    "consistency": lambda mem: mem.search(consistency=-(10**5000)),
    "a long consistency": lambda mem: mem.search(consistency=cast(Any, "\x1b" * 10**6)),
    "option": lambda _: Options(batch_events_max=-(10**5000)),
    "dimensions": lambda _: parse_embedding_config({"dimensions": 10**5000}),
    "no dimensions": lambda _: parse_embedding_config({"dimensions": -(10**5000)}),
    "configuration": lambda _: parse_embedding_config({"\x1b" * 10**6: 1}),
    "prompt": lambda _: parse_embedding_config({"model_id": "m", "query_prompt": "\ud800"}),
}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memory]:
    options = Options(home=tmp_path_factory.mktemp("home"), progress=False, append_bytes_max=10**6)
    with Memory("security_limited", None, None, options=options) as opened:
        opened.add_entry("the one memory", memory_id="one", metadata={"a": 1})
        yield opened


def assert_refused(mem: Memory, call: Callable[[], Any]) -> None:
    lsn = mem.stats().durable_lsn
    with pytest.raises((InvalidArgumentError, InvalidTypeError)) as refused:
        call()
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1400
    assert mem.stats().durable_lsn == lsn
    assert mem.count() == 1


@pytest.mark.parametrize("name", METADATA)
def test_metadata_beyond_the_limits(limited: Memory, name: str) -> None:
    assert_refused(limited, lambda: limited.add_entry("x", metadata=METADATA[name]))
    assert_refused(
        limited, lambda: limited.add_entries([{"content": "x"}, {"content": "x", "metadata": METADATA[name]}])
    )
    assert_refused(limited, lambda: limited.update_memory("one", metadata=METADATA[name]))


@pytest.mark.parametrize("name", FILTERS)
def test_filters_beyond_the_limits(limited: Memory, name: str) -> None:
    assert_refused(limited, lambda: limited.search(metadata_filter=FILTERS[name]))


@pytest.mark.parametrize("name", OTHERS)
def test_other_arguments_beyond_the_limits(limited: Memory, name: str) -> None:
    assert_refused(limited, lambda: OTHERS[name](limited))


def test_what_is_as_large_as_may_be(limited: Memory) -> None:
    """The largest that the limits let through is answered, not broken by."""
    assert limited.search(metadata_filter={".".join(["a"] * 1000): 1}) == []
    assert limited.search(metadata_filter={".".join(["a"] * 1000): {"$contains": [1]}}) == []
    assert limited.search(metadata_filter={"x" * 500_000: {"$in": list(range(90))}}) == []
    assert len(limited.search(metadata_filter={"a": {"$in": list(range(100_000))}})) == 1
    assert len(limited.search(metadata_filter={"x" * 500_000: {"$ne": 1}}, limit=10**5000)) == 1
    assert limited.delete_memories([f"{n:0>1000}" for n in range(2000)]) == 0
    for timeout in (10**400, float("inf")):
        assert len(limited.search(timeout=timeout)) == 1


def test_a_path_is_not_repeated_for_every_operand() -> None:
    value = {"x" * 100_000: {"$and": [{"$in": list(range(90))}, {"$contains": [1]}, {"$eq": 1}] * 100}}
    tree = parse_filter(value, Options())
    assert tree is not None
    sql, parameters = compile_filter(tree, metadata="m", typed={})
    assert len(sql) + sum(len(str(each)) for each in parameters.values()) < 1_000_000


def test_little_is_left_of_the_stack() -> None:
    """A caller's own recursion may leave too little for what the limits allow."""
    metadata = nested(255, lambda inner: {"a": inner, "b": float(2)})
    options = Options(metadata_depth_max=256, filter_depth_max=128)
    outcomes = set()

    class Own(dict[str, Any]):
        """Not a plain dict, so it is copied one by one."""

    def descend(levels: int) -> None:
        if levels:
            descend(levels - 1)
            return
        for call in (
            lambda: encode_metadata(Own(metadata), options),
            lambda: parse_filter(nested(126, lambda inner: {"$not": inner if inner != 1 else {"a": 1}}), options),
        ):
            try:
                call()
                outcomes.add("taken")
            except InvalidArgumentError:
                outcomes.add("refused")

    for levels in range(0, sys.getrecursionlimit() - 150, 100):
        descend(levels)
    assert outcomes == {"taken", "refused"}


# ---------------------------------------------------------------------------------------------------------- the files


def assert_owners_alone(folder: Path) -> None:
    modes = {path: oct(stat.S_IMODE(path.lstat().st_mode)) for path in [folder, *folder.rglob("*")]}
    assert modes == {path: "0o700" if path.is_dir() else "0o600" for path in modes}


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_every_file_is_for_its_owner_alone(
    tmp_path: Path, store_name: str, capsys: pytest.CaptureFixture[str], umask: int
) -> None:
    """While a store is open, closed, recovered from a torn tail, damaged and repaired; the model's vectors with it."""
    from tests.harness.embedders import embed_words

    before = os.umask(umask)
    try:
        home = tmp_path / "made" / "home"
        given = Options(home=home, progress=False, segment_bytes_max=4096)
        with Memory(store_name, None, {"function": embed_words}, options=given) as mem:
            mem.add_entries([{"content": f"note {number} " + "x" * 100} for number in range(100)])
            mem.add_entry("the last one")
            mem.flush()
            assert_owners_alone(tmp_path / "made")
            assert {"LOCK", "MANIFEST", "log", "vectors"} <= {path.name for path in (home / store_name).iterdir()}
            torn = home / f"{store_name}_torn"
            shutil.copytree(home / store_name, torn, copy_function=shutil.copy)
        for path in torn.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        torn.chmod(0o700)
        last = max((torn / "log").glob("*.log"))
        last.write_bytes(last.read_bytes().rstrip(b"\0")[:-9])
        with Memory(torn.name, None, {"function": embed_words}, options=given) as mem:
            mem.flush()
        assert list((torn / "quarantine").iterdir())
        assert_owners_alone(tmp_path / "made")
        damaged = min((torn / "log").glob("*.log"))
        data = bytearray(damaged.read_bytes())
        data[700] ^= 1
        damaged.write_bytes(data)
        assert main(["repair", str(torn), "--yes", "--log-only"]) == 0, capsys.readouterr()
        repaired = {path.name for path in (torn / "quarantine").rglob("*")}
        assert {"note.json", damaged.name} <= repaired
        assert_owners_alone(tmp_path / "made")
    finally:
        os.umask(before)


# -------------------------------------------------------------------------------------------------------- the sockets


def listening(process: int) -> set[tuple[str, str]]:
    """What a process and its children listen on: ("tcp", port) and ("unix", path); from /proc."""
    family, parents = {process}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    inodes = set()
    for pid in family:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(descriptor)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[len("socket:[") : -1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(("tcp", str(int(fields[1].rpartition(":")[2], 16))))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[3], 16) & 0x10000 and fields[6] in inodes:
            found.add(("unix", fields[7] if len(fields) > 7 else ""))
    return found


OWNER = """
    import sys
    from tests.harness.engine_tools import open_memory
    home, name, keep = sys.argv[1:]
    with open_memory(home, name, keep_pixeltable_http_server=keep == "keep") as mem:
        mem.add_entry("x", embedding=[1.0] * 8)
        mem.search()
        print("open", flush=True)
        sys.stdin.readline()
"""

#: another user tries to read a file through each of some ports of this machine
READER = """
    import encodings.idna  # imported late otherwise, from a folder that the other user may not enter
    import json, os, sys, urllib.request
    path, user, *ports = sys.argv[1:]
    os.setgroups([]), os.setgid(int(user)), os.setuid(int(user))
    try:
        open(path).read()
        raise SystemExit("the file is readable as it is")
    except PermissionError:
        pass
    answers = []
    for port in ports:
        for request in (path, "/" + path, path.lstrip("/")):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/{request}", timeout=10) as answer:
                    answers.append(answer.read().decode())
            except OSError:
                pass
    print(json.dumps(answers))
"""


@needs_proc
@needs_root
@pytest.mark.parametrize("keep", ["close", "keep"])
def test_another_user_cannot_read_files_through_an_open_store(tmp_path: Path, store_name: str, keep: str) -> None:
    """With ``keep_pixeltable_http_server`` he can, which shows that the test would notice."""
    secret = tmp_path / "secret"
    secret.write_text("the owner's alone")
    secret.chmod(0o600)
    with start_script(OWNER, tmp_path / "home", store_name, keep) as owner:
        assert owner.stdout.readline() == "open\n", owner.stderr.read()
        sockets = listening(owner.pid)
        ports = [place for kind, place in sockets if kind == "tcp"]
        read = answer_of(run_script(READER, secret, NOBODY, *ports))
        owner.communicate("\n", timeout=400)
    assert owner.returncode == 0
    if keep == "keep":
        assert len(ports) == 1
        assert "the owner's alone" in read
    else:
        assert sockets == set()
        assert read == []


@needs_proc
@pytest.mark.usefixtures("limited")
def test_the_database_listens_in_a_folder_of_its_owners_alone() -> None:
    """It asks nobody for a password, so this folder is all that keeps other users out."""
    lines = Path(os.environ["PIXELTABLE_HOME"], "pgdata", "postmaster.pid").read_text().splitlines()
    pid, folder, port = int(lines[0]), Path(lines[4]), lines[3]
    if os.geteuid() == 0 or os.stat(f"/proc/{pid}").st_uid == os.geteuid():
        assert listening(pid) == {("unix", f"{folder}/.s.PGSQL.{port}")}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    # and where the folder has to be another one, the socket itself lets nobody else in
    assert stat.S_IMODE((folder / f".s.PGSQL.{port}").stat().st_mode) == 0o700
    if os.geteuid() != 0:
        return
    script = """
        import json, os, sys
        import psycopg
        host, user = sys.argv[1:]
        os.setgroups([]), os.setgid(int(user)), os.setuid(int(user))
        try:
            psycopg.connect(host=host, user="postgres", dbname="postgres").close()
            print(json.dumps("connected"))
        except psycopg.OperationalError as error:
            print(json.dumps(str(error)))
    """
    assert "Permission denied" in answer_of(run_script(script, folder, NOBODY))


# ------------------------------------------------------------------------------------------- code that comes from data

FORBIDDEN_MODULES = {
    "pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "code", "pty",
}  # fmt: skip


def code_from_data(source: str) -> list[str]:
    """The lines of a program that could run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        modules = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(module.partition(".")[0] in FORBIDDEN_MODULES for module in modules):
            found.append(ast.unparse(node))
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {each.arg: ast.unparse(each.value) for each in node.keywords}
        if (
            called in ("eval", "exec", "compile", "__import__", "os.system", "os.popen")
            or keywords.get("shell", "False") != "False"
            or (called.endswith("torch.load") and keywords.get("weights_only") != "True")
            or keywords.get("allow_pickle", "False") != "False"
            or keywords.get("trust_remote_code", "config.trust_remote_code") != "config.trust_remote_code"
        ):
            found.append(ast.unparse(node))
    return found


def test_nothing_in_the_package_runs_what_it_reads() -> None:
    folder = Path(pixelmemory.__file__).parent
    sources = list(folder.rglob("*.py"))
    assert len(sources) > 40
    assert {str(path): found for path in sources if (found := code_from_data(path.read_text()))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "def f():\n    import marshal", "import yaml", "eval(x)",
        "torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)",
        "subprocess.run(x, shell=True)", "SentenceTransformer(x, trust_remote_code=True)", "os.system(x)",
    ],
)  # fmt: skip
def test_the_search_for_it_finds_it(source: str) -> None:
    assert len(code_from_data(source)) == 1


def test_a_models_own_code_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    """A model's folder that names a class of its own, and one whose weights are a pickle."""
    model, pickled, marker = tmp_path / "model", tmp_path / "pickled", tmp_path / "it_ran"
    model.mkdir()
    (model / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "hostile.Module"}]')
    (model / "hostile.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Module: pass\n")
    pickled.mkdir()
    (pickled / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]'
    )
    (pickled / "config.json").write_text('{"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2}')
    (pickled / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch %b'\ntR." % str(marker).encode())
    script = """
        import json, os, sys
        from pixelmemory import ModelLoadError
        from pixelmemory.embedding import open_embedder, parse_embedding_config
        model, pickled, marker = sys.argv[1:]
        answers = []
        for config in (model, pickled, {"model_id": model, "trust_remote_code": True}):
            try:
                open_embedder(parse_embedding_config(config))
            except ModelLoadError as error:
                answers.append([os.path.exists(marker), error.reason])
        print(json.dumps(answers))
    """
    done = run_script(script, model, pickled, marker, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "cache"))
    untrusted, weights, trusted = answer_of(done)
    assert not untrusted[0], untrusted
    assert not weights[0], weights
    assert trusted[0], trusted
    assert EmbeddingConfig(model_id="m").trust_remote_code is False
    assert parse_embedding_config("m") == EmbeddingConfig(model_id="m", trust_remote_code=False)


# ------------------------------------------------------------------------------------------------------- the terminal


def test_the_program_prints_nothing_that_a_terminal_would_act_upon(
    open_memory: OpenMemory, tmp_path: Path, store_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    escapes = "\x1b[31m\x07\r\n\x9b2J\u202e\u200b\x7f" + "x" * 30
    mem = open_memory(segment_bytes_max=4096)
    for number in range(40):
        memory_id = f"{number}{escapes}"
        mem.add_entry(f"{number}{escapes}", escapes, memory_id=memory_id, metadata={escapes: [escapes]})
    mem.update_memory(f"1{escapes}", escapes, content=escapes, metadata={escapes: escapes})
    mem.delete_memory(f"2{escapes}", escapes)
    mem.get_namespace_table(escapes).insert([{"memory_id": uuid.uuid4(), "content": escapes}])
    mem.get_namespace_table(escapes).update({"content": f"{escapes}!", "id_text": escapes})
    mem.close()
    homes = [tmp_path / "\x1b[31mred\r\n", Path(os.fsdecode(bytes(tmp_path) + b"/\xff\xfe"))]
    stores = [home / store_name for home in homes]
    for copied in stores:
        shutil.copytree(tmp_path / store_name, copied)
    hostile = stores[0].with_name(f"{store_name}{escapes}")
    stores[0].rename(hostile)
    stores[0] = hostile
    for copied in stores:
        segments = sorted((copied / "log").glob("*.log"))
        data = bytearray(segments[1].read_bytes())
        data[700] ^= 1
        segments[1].write_bytes(data)
        (copied / "log" / f"stray{escapes[:8]}.log").write_bytes(b"x")
    statuses = []
    for store in (tmp_path / store_name, *stores, tmp_path / f"none{escapes}", f"none{escapes}"):
        for command in ("log", "log --json", "verify", "verify --json", "verify --log-only", "repair", "repair --yes"):
            name, *flags = command.split()
            statuses.append(main([name, str(store), "--home", str(homes[0]), *flags]))
            out, err = capsys.readouterr()
            unsafe = {char for char in out + err if not char.isprintable() and char != "\n"}
            assert unsafe == set(), (command, store, unsafe)
            assert "Traceback" not in err
            if "--json" in flags and statuses[-1] != 2:
                assert all(isinstance(json.loads(line), dict) for line in out.splitlines())
    assert {0, 1, 2} == set(statuses)
