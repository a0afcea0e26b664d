"""Which tables there are: shared ones and those of one namespace, the registry, the state row, the dead letters.

Everything lives in Pixeltable under ``pixelmemory/<name>_<store id>``, since the same name in another home is another
store:

``state``         one row: the store's id, the checkpoint, what the projection was made with
``registry``      one row a namespace: its key, its name, its table
``dead_letters``  one row an event that could not be applied
``memories``      the memories of the namespaces that share a table
``ns_<slug>_<hash>``  the memories of a namespace that has its own
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import threading
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec
import pixeltable as pxt
from pixeltable import exceptions as excs

from pixelmemory.faults import fault_point
from pixelmemory.memory.schema import ColumnKind, Schema
from pixelmemory.options import Layout
from pixelmemory.projection.contract import DeadLetter, ProjectionState
from pixelmemory.projection.embed import embed_content
from pixelmemory.projection.pixeltable import internals
from pixelmemory.projection.pixeltable.startup import connection_string, revive_server
from pixelmemory.projection.rows import COLUMNS, Kind
from pixelmemory.projection.scaling import DIMENSIONS_MAX_FP32
from pixelmemory.projection.sql.filters import typed_index
from pixelmemory.projection.sql.physical import PhysicalTable, namespace_key
from pixelmemory.projection.sql.session import connect

__all__ = [
    "INDEX_NAME",
    "OWN_TABLE_ROWS_MIN",
    "SHARED_TABLE",
    "TableSet",
    "find_folder",
    "folder_name",
    "registry_row",
    "table_name",
]

_logger = logging.getLogger("pixelmemory.projection")

ROOT = "pixelmemory"
#: how long a store waits for others that make their folders, which takes milliseconds
FOLDER_SECONDS_MAX = 30.0
#: of the advisory lock that is held while a folder is made
_FOLDERS_KEY = int.from_bytes(hashlib.blake2b(ROOT.encode(), digest_size=8).digest(), "big", signed=True)
INDEX_NAME = "content_embedding"
SHARED_TABLE = "memories"
#: rows at once that give a new namespace its own table from the beginning: to make it takes 100 ms or more
OWN_TABLE_ROWS_MIN = 1000

_COLUMN_TYPES: dict[Kind, Any] = {
    Kind.TEXT: pxt.String,
    Kind.JSON: pxt.Json,
    Kind.JSON_TEXT: pxt.String,
    Kind.TIME: pxt.Timestamp,
    Kind.INT: pxt.Int,
}
_TYPED_COLUMN_TYPES: dict[ColumnKind, Any] = {
    ColumnKind.STRING: pxt.String,
    ColumnKind.INT: pxt.Int,
    ColumnKind.FLOAT: pxt.Float,
    ColumnKind.BOOL: pxt.Bool,
    ColumnKind.TIMESTAMP: pxt.Timestamp,
    ColumnKind.JSON: pxt.Json,
}


def _slug(text: str, length: int) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:length].strip("_")


def folder_name(store_name: str, tables_id: uuid.UUID) -> str:
    """The Pixeltable folder of a store: readable, and of this store alone."""
    slug = _slug(store_name, 24)
    if not slug[:1].isalpha():  # an identifier begins with a letter
        slug = f"store_{slug}".rstrip("_")
    return f"{slug}_{tables_id.hex}"


@contextlib.contextmanager
def _one_maker_of_folders() -> Iterator[None]:
    """Let one store at a time make its folder in the block, in every process that uses the database.

    Pixeltable lets two that make one folder at the same time (``pixelmemory``, for the first two stores) make it twice.
    After that nobody can use it.

    Raises:
        psycopg.errors.LockNotAvailable: another one makes its folder for more than :data:`FOLDER_SECONDS_MAX`.
    """
    limit = f"-c lock_timeout={round(FOLDER_SECONDS_MAX * 1000)}"
    with contextlib.closing(connect(connection_string(), "pixelmemory", options=limit)) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (_FOLDERS_KEY,))
        yield
        # explicitly: a session ends some time after its connection is closed
        connection.execute("SELECT pg_advisory_unlock(%s)", (_FOLDERS_KEY,))


def find_folder(store_name: str, tables_id: uuid.UUID, history_id: str) -> str | None:
    """The folder that holds the projection of a store; None if there is none.

    It has another name than :func:`folder_name` where the store was renamed, or was made by version 0.1.0.

    Args:
        history_id: of the manifest, else the store's id: the state of a projection of its own has it.
    """
    try:
        names: list[str] = [path.rpartition("/")[2] for path in pxt.list_dirs(ROOT, recursive=False)]
    except excs.NotFoundError:
        return None
    if (wanted := folder_name(store_name, tables_id)) in names:
        return wanted
    renamed = [name for name in names if name.endswith(f"_{tables_id.hex}")]
    if renamed:
        return renamed[0]
    legacy = legacy_folder_name(store_name)
    if legacy not in names:
        return None
    try:
        states = list(pxt.get_table(f"{ROOT}/{legacy}/state").select().collect())
    except excs.NotFoundError:
        return None
    is_its = any(row["store_id"] == history_id for row in states)
    return str(legacy) if is_its else None


def legacy_folder_name(store_name: str) -> str:
    """As version 0.1.0 named it: stores of one name in different homes shared a folder, and dropped each other's."""
    if re.fullmatch(r"[a-z][a-z0-9_]{0,62}", store_name):
        return store_name
    digest = hashlib.blake2b(store_name.encode(), digest_size=8).hexdigest()
    return f"store_{_slug(store_name, 24)}_{digest}"


def registry_row(namespace: str, name: str) -> dict[str, Any]:
    """The row of the registry that says in which table ``namespace`` is."""
    return {"namespace_key": namespace_key(namespace), "namespace": namespace, "table_name": name}


def table_name(namespace: str) -> str:
    """``ns_<slug>_<hash>``: readable, safe, and different for namespaces that differ in any code point."""
    digest = hashlib.blake2b(namespace.encode(), digest_size=16).hexdigest()
    slug = _slug(namespace, 24)
    return f"ns_{slug}_{digest}" if slug else f"ns_{digest}"


class TableSet:
    """The tables of one projection: finds, creates and repairs them.

    ``create`` belongs to the projector's thread; everything else may be called from any worker thread.
    """

    def __init__(self, folder: str, state: ProjectionState, schema: Schema | None, *, direct_sql: bool) -> None:
        self.path = f"{ROOT}/{folder}"
        self.state = state
        self.schema = schema
        #: False once :func:`internals.check` failed, or by option
        self.direct_sql = direct_sql
        self.layout = Layout(state.layout)
        self._lock = threading.Lock()
        self._registry: dict[str, str] = {}
        #: whether the registry in the database may be ahead of ours; the writer thread's
        self._is_stale = False
        self._physical: dict[str, PhysicalTable] = {}
        self._opened = threading.local()

    @property
    def dimensions(self) -> int | None:
        """Of a vector, or None without semantic search."""
        return self.state.dimensions

    def connection_string(self) -> str:
        """Pixeltable's database, as psycopg takes it."""
        return connection_string()

    def revive(self) -> None:
        """Start Pixeltable's embedded PostgreSQL again if it is gone."""
        revive_server()

    # -- the projection as a whole

    def stored_state(self) -> tuple[ProjectionState, int] | None:
        """What the projection in the database was made from, and its checkpoint; None if there is none, or half."""
        try:
            table = pxt.get_table(f"{self.path}/state")
            rows = list(table.select().collect())
            for name in ("registry", "dead_letters"):
                pxt.get_table(f"{self.path}/{name}")
        except excs.NotFoundError:
            return None
        if len(rows) != 1:
            return None
        row = rows[0]
        fields = {name: row[name] for name in ProjectionState.__struct_fields__}
        return ProjectionState(**fields), row["checkpoint_lsn"]

    def adopt(self, folder: str) -> None:
        """Give the projection in ``folder`` this one's place, with all that users added to it."""
        _logger.info("the tables of the store move from %s/%s to %s", ROOT, folder, self.path)
        pxt.move(f"{ROOT}/{folder}", self.path)

    def drop(self) -> None:
        """Delete the whole projection, with whatever users added to its tables."""
        fault_point("projection.before_drop")
        pxt.drop_dir(self.path, force=True, if_not_exists="ignore")
        fault_point("projection.after_drop")
        self._registry.clear()
        self._physical.clear()
        self._handles.clear()

    def initialize(self) -> None:
        """Make an empty projection with its checkpoint at 0. The state row comes last: without it there is none."""
        with _one_maker_of_folders():
            pxt.create_dir(self.path, parents=True, if_exists="ignore")
        fault_point("projection.after_folder")
        registry = {"namespace_key": pxt.UUID, "namespace": pxt.String, "table_name": pxt.String}
        dead = {
            "lsn": pxt.Int,
            "namespace": pxt.String,
            "memory_id": pxt.String,
            "error": pxt.String,
            "blocked_by": pxt.Int | None,
        }
        state = {
            "key": pxt.Int,
            "checkpoint_lsn": pxt.Int,
            "store_id": pxt.String,
            "layout": pxt.String,
            "embedding": pxt.String | None,
            "dimensions": pxt.Int | None,
            "schema": pxt.String | None,
            "format": pxt.Int,
        }
        pxt.create_table(f"{self.path}/registry", registry, primary_key="namespace_key")
        fault_point("projection.after_registry")
        pxt.create_table(f"{self.path}/dead_letters", dead, primary_key="lsn")
        table = pxt.create_table(f"{self.path}/state", state, primary_key="key")
        fault_point("projection.after_state")
        table.insert([{"key": 1, "checkpoint_lsn": 0, **msgspec.structs.asdict(self.state)}])
        fault_point("projection.after_state_row")

    def load(self) -> None:
        """Read the registry, and check the internals that the fast paths use."""
        self._read_registry()
        state = self.table("state")
        if [row["layout"] for row in state.select(state.layout).collect()] != [self.layout.value]:
            state.batch_update([{"key": 1, "layout": self.layout.value}])
        if self.direct_sql and (difference := internals.check(self.table("state"))):
            _logger.warning("Pixeltable's internals differ (%s): using its public API, which is slower", difference)
            self.direct_sql = False

    def _read_registry(self) -> None:
        rows = self.table("registry").select().collect()
        with self._lock:
            self._registry = {row["namespace"]: row["table_name"] for row in rows}
        self._is_stale = False

    def namespaces(self) -> list[str]:
        """Every namespace that ever held a memory here, in code-point order."""
        with self._lock:
            return sorted(self._registry)

    def dead_letters(self) -> list[DeadLetter]:
        """The recorded ones."""
        dead = self.table("dead_letters")
        columns = {name: getattr(dead, name) for name in DeadLetter.__struct_fields__}
        return [DeadLetter(**row) for row in dead.select(**columns).collect()]

    # -- single tables

    @property
    def _handles(self) -> dict[str, pxt.Table]:
        """The calling thread's handles: Pixeltable keeps a catalog a thread, and cannot look into another's."""
        try:
            handles: dict[str, pxt.Table] = self._opened.handles
        except AttributeError:
            handles = self._opened.handles = {}
        return handles

    def table(self, name: str) -> pxt.Table:
        """The Pixeltable table ``name`` of this folder; kept open for the calling thread."""
        table = self._handles.get(name)
        if table is None:
            table = self._handles[name] = pxt.get_table(f"{self.path}/{name}")
        return table

    def name_of(self, namespace: str) -> str | None:
        """The table that holds ``namespace``, or None if it never held a memory."""
        with self._lock:
            return self._registry.get(namespace)

    def physical(self, name: str) -> PhysicalTable:
        """The physical side of the table ``name``. The first time not within a transaction."""
        found = self._physical.get(name)
        if found is None:
            found = internals.resolve(self.table(name), INDEX_NAME)
            self._physical[name] = found
        return found

    def damage(self, names: Collection[str]) -> str | None:
        """What of our own is missing in the tables ``names``, for a person; None if nothing is.

        A table or column that was dropped or renamed makes every write fail, and no event is to blame for that.
        """
        for name in (*names, "state", "registry", "dead_letters"):
            self._handles.pop(name, None)
            try:
                table = self.table(name)
            except excs.NotFoundError:
                return f"table {self.path}/{name} is gone"
            self._physical.pop(name, None)  # what was put back is another one
            if name not in names:
                continue
            missing = set(self.columns(shared=self.is_shared(name))) - set(table.get_metadata()["columns"])
            if missing:
                return f"table {self.path}/{name} has lost its columns {', '.join(sorted(missing))}"
        return None

    # -- how memories are laid out

    def is_shared(self, name: str) -> bool:
        """Whether the table ``name`` holds several namespaces."""
        return name == SHARED_TABLE

    def has_hnsw(self, name: str) -> bool:
        """Whether the table ``name`` gets an HNSW index: in one that namespaces leave when they are large, it would
        only be in the way."""
        return self.dimensions is not None and (not self.is_shared(name) or self.layout is Layout.SHARED)

    def names_for(self, namespace: str) -> list[str]:
        """The tables that hold rows of ``namespace``, or have held some: it may have moved."""
        with self._lock:
            name = self._registry.get(namespace)
            if name is None:
                return []
        if self.layout is Layout.AUTO and name != SHARED_TABLE and self._exists(SHARED_TABLE):
            return [name, SHARED_TABLE]
        return [name]

    def _exists(self, name: str) -> bool:
        with contextlib.suppress(excs.NotFoundError):
            self.table(name)
            return True
        return False

    def unfinished_moves(self) -> list[str]:
        """The namespaces with a table of their own whose rows are in the shared one as well: a kill left them there.

        Where there is no SQL, none is looked for: nothing reads those rows.
        """
        if not self.direct_sql or self.layout is not Layout.AUTO or not self._exists(SHARED_TABLE):
            return []
        with self._lock:
            own = {namespace_key(each): each for each, name in self._registry.items() if name != SHARED_TABLE}
        if not own:
            return []
        shared = self.physical(SHARED_TABLE)
        return [own[key] for key in internals.keys_in(shared, "namespace_key", list(own))]

    def columns(self, *, shared: bool) -> dict[str, Any]:
        """The columns of a table of memories, with their types."""
        columns: dict[str, Any] = {"memory_id": pxt.UUID}
        if shared:
            columns = {"namespace_key": pxt.UUID, **columns, "namespace": pxt.String | None}
        columns["id_text"] = pxt.String | None
        for column in COLUMNS:
            kind = _COLUMN_TYPES[column.kind]
            columns[column.name] = kind if column.required else kind | None
        typed = self.schema.columns if self.schema is not None else {}
        # Pixeltable folds the names of columns to lower case
        return columns | {name.lower(): _TYPED_COLUMN_TYPES[kind] | None for name, kind in typed.items()}

    def create(self, rows: Mapping[str, int]) -> None:
        """Make and register what the namespaces ``rows`` lack.

        A table without its registry row is what a kill in here left behind: it holds nothing and is made again.

        Args:
            rows: how many rows each namespace is about to get: one that gets many has its own table at once.
        """
        if self._is_stale:
            self._read_registry()
        with self._lock:
            new = [namespace for namespace in rows if namespace not in self._registry]
            known = set(self._registry.values())
        names = {namespace: self._first_table(namespace, rows[namespace]) for namespace in new}
        for name in dict.fromkeys(names.values()):
            if name not in known:
                self.make(name)
        if not names:
            return
        fault_point("table.after_indexes")
        self.table("registry").insert([registry_row(namespace, name) for namespace, name in names.items()])
        fault_point("table.after_registration")
        with self._lock:
            self._registry |= names

    def _first_table(self, namespace: str, rows: int) -> str:
        if self.layout is Layout.SHARED:
            return SHARED_TABLE
        # through the public API alone a move costs as much as the table
        is_shared = self.layout is Layout.AUTO and self.direct_sql and rows < OWN_TABLE_ROWS_MIN
        return SHARED_TABLE if is_shared else table_name(namespace)

    @contextlib.contextmanager
    def moving(self, namespace: str, name: str) -> Iterator[None]:
        """The rows of ``namespace`` are in the table ``name`` after the block, which commits that.

        Where the block fails it is not known whether it has: the registry is read again before the next write.
        """
        self._is_stale = True
        yield
        with self._lock:
            self._registry[namespace] = name
        self._is_stale = False

    def make(self, name: str) -> None:
        """Make the table ``name`` again, with its indexes and without a row."""
        path = f"{self.path}/{name}"
        shared = self.is_shared(name)
        fault_point("table.before_create")
        pxt.drop_table(path, force=True, if_not_exists="ignore")
        key = ["namespace_key", "memory_id"] if shared else ["memory_id"]
        table = pxt.create_table(path, self.columns(shared=shared), primary_key=key)
        fault_point("table.after_create")
        dimensions = self.state.dimensions
        if dimensions is not None:
            table.add_embedding_index(
                "content",
                idx_name=INDEX_NAME,
                string_embed=embed_content.using(store_id=self.state.store_id, dimensions=dimensions),
                metric="cosine",
                precision="fp32" if dimensions <= DIMENSIONS_MAX_FP32 else "fp16",
            )
        fault_point("table.after_embedding_index")
        self._handles[name] = table
        self._physical.pop(name, None)
        if self.direct_sql:
            typed = self.schema.columns if self.schema is not None else {}
            self._create_indexes(self.physical(name), typed, shared=shared)
            if dimensions is not None:  # the index is built once the table has outgrown exact searches
                internals.execute(self.physical(name).drop_hnsw)

    def _create_indexes(self, table: PhysicalTable, typed: Mapping[str, ColumnKind], *, shared: bool) -> None:
        column = table.columns
        prefix = f"{column['namespace_key']}, " if shared else ""
        # every search walks what inserts have left to be sorted in: by default up to 4 MB of it
        gin = f"gin ({column['metadata']} jsonb_path_ops) WITH (gin_pending_list_limit = 128)"
        internals.create_index(table, "metadata", gin)
        newest = f"{column['timestamp']} DESC NULLS LAST, {column['lsn']} DESC NULLS LAST"
        internals.create_index(table, "newest", f"btree ({prefix}{newest})")
        for name, kind in typed.items():
            if kind is ColumnKind.JSON:
                continue
            typed_column = column[name.lower()]
            expression, unheld = typed_index(column["metadata"], name, typed_column, kind)
            internals.create_index(table, f"typed_{typed_column}", f"btree ({prefix}({expression}))")
            # rows whose metadata the column cannot hold: few, and found without looking at the others
            internals.create_index(table, f"untyped_{typed_column}", f"btree ({prefix}(1))", unheld)
